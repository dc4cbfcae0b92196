"""The Dockerfile, read as text: no Docker is needed and no image is built."""

import fnmatch
import re
import tomllib
from typing import NamedTuple

import pytest

from tests.helpers import ROOT

DOCKERFILE = ROOT / "tpu_scripts" / "docker" / "Dockerfile"
FINAL_STAGES = {"tpu": ["tpu"], "cuda": ["cuda"], "serve": ["serve", "openvino"]}
"""Each image and the extras that it installs."""


class Instruction(NamedTuple):
    """One instruction: its stage, its word and the rest of the line."""

    stage: str
    word: str
    rest: str


def instructions() -> list[Instruction]:
    """Returns the instructions in order; those before the first FROM belong to no stage."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text(encoding="utf-8"))
    found, stage = [], ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.split(" AS ")[1]
        found.append(Instruction(stage, word, rest.strip()))
    return found


def parents() -> dict[str, str]:
    """Returns for each stage what it starts from."""
    return {step.stage: step.rest.split(" AS ")[0] for step in instructions() if step.word == "FROM"}


def history(stage: str) -> list[Instruction]:
    """Returns all instructions of a stage, those of the stages that it starts from first."""
    parent = parents()[stage]
    before = history(parent) if parent in parents() else []
    return [*before, *(step for step in instructions() if step.stage == stage)]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def copied(step: Instruction) -> list[str]:
    """Returns the sources of a COPY out of the repository; none of one out of another stage."""
    words = step.rest.split()
    return [] if words[0].startswith("--from=") else words[:-1]


def test_the_base_image_and_the_installer_are_pinned() -> None:
    (base,) = [step.rest for step in instructions() if step.word == "ARG" and not step.stage]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+", base)
    assert all(parent in parents() or parent == "${PYTHON_IMAGE}" for parent in parents().values())
    assert re.search(r"pip install --no-cache-dir uv==\d+\.\d+\.\d+ ", DOCKERFILE.read_text(encoding="utf-8"))


def test_the_base_image_has_a_python_that_the_project_supports() -> None:
    (minor,) = re.findall(r"PYTHON_IMAGE=python:3\.(\d+)", DOCKERFILE.read_text(encoding="utf-8"))
    assert int(minor) >= int(project()["requires-python"].removeprefix(">=3."))


def test_everything_that_is_copied_exists_and_is_let_through() -> None:
    patterns = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert patterns[0] == "*"
    allowed = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    sources = {source for step in instructions() if step.word == "COPY" for source in copied(step)}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)
    assert any(fnmatch.fnmatch("flaxbert/core/__pycache__", pattern) for pattern in patterns[1:])


def test_what_comes_from_another_stage_is_made_there() -> None:
    for step in instructions():
        if step.word == "COPY" and step.rest.startswith("--from="):
            stage, source = step.rest.removeprefix("--from=").split()[:2]
            assert f"uv venv {source}" in "\n".join(before.rest for before in history(stage))


@pytest.mark.parametrize(("stage", "wanted"), FINAL_STAGES.items())
def test_each_image_installs_its_extras_and_no_torch(stage: str, wanted: list[str]) -> None:
    (build,) = [step.rest.split()[0].removeprefix("--from=") for step in history(stage) if "--from=" in step.rest]
    extras = re.findall(r"--extra (\w+)", "\n".join(step.rest for step in history(build)))
    assert extras == wanted
    optional = project()["optional-dependencies"]
    requirements = [*project()["dependencies"], *(entry for extra in wanted for entry in optional[extra])]
    names = {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in requirements}
    assert not names & {"torch", "tensorflow", "torchvision", "keras"}


def test_the_extras_are_those_of_jax() -> None:
    extras = project()["optional-dependencies"]
    assert [re.match(r"jax\[(\w+)\]", requirement)[1] for requirement in extras["tpu"]] == ["tpu"]
    assert [re.match(r"jax\[(\w+)\]", requirement)[1] for requirement in extras["cuda"]] == ["cuda12"]


@pytest.mark.parametrize("stage", FINAL_STAGES)
def test_images_do_not_run_as_root(stage: str) -> None:
    users = [step.rest for step in history(stage) if step.word == "USER"]
    (default,) = [step.rest for step in history(stage) if step.word == "ARG"]
    assert users == ["${RUN_AS}"]
    assert default == "RUN_AS=1000:1000"


@pytest.mark.parametrize("stage", ["build-tpu", "build-cuda"])
def test_dependencies_are_installed_before_the_sources_are_copied(stage: str) -> None:
    steps = history(stage)
    sources = min(number for number, step in enumerate(steps) if "flaxbert" in copied(step))
    installs = [number for number, step in enumerate(steps) if "uv pip install" in step.rest]
    assert [number < sources for number in installs] == [True, True, False]
    assert steps[installs[-1]].rest.endswith("uv pip install --no-deps .")
