"""The script that starts a run on every worker of a TPU VM."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT

SCRIPT = ROOT / "tpu_scripts" / "finetune.sh"
OPTIONS = ["--config", "my file.yaml", "--data.label_separator", "a\"b'$HOME;"]


def run_script(*arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": os.pathsep.join(filter(None, [path, os.environ["PATH"]]))}
    return subprocess.run([str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False)


def command_of(line: str) -> str:
    words = shlex.split(line)
    return words[words.index("--command") + 1]


@pytest.fixture(scope="session")
def shellcheck() -> str:
    beside = pathlib.Path(sys.executable).parent / "shellcheck"
    found = str(beside) if beside.is_file() else shutil.which("shellcheck")
    if not found:
        pytest.skip("needs shellcheck")
    return found


def test_a_dry_run_prints_every_step_and_runs_none(tmp_path: pathlib.Path) -> None:
    (tmp_path / "gcloud").write_text(f"#!/bin/sh\ntouch '{tmp_path}/was-run'\n", encoding="utf-8")
    (tmp_path / "gcloud").chmod(0o755)
    result = run_script(
        "--name", "v5", "--zone", "z", "--project", "p", "--dry-run", "--", *OPTIONS, path=str(tmp_path)
    )
    assert result.returncode == 0, result.stderr
    archive, copy, install, start = result.stdout.splitlines()
    assert " archive " in archive
    assert copy.startswith("gcloud compute tpus tpu-vm scp ")
    assert "v5:flaxbert.tar.gz --zone z --worker=all --project p" in copy
    assert all("--worker=all --project p" in line for line in (install, start))
    assert ".[tpu]" in command_of(install)
    assert not (tmp_path / "was-run").exists()


def test_options_arrive_as_they_were_written() -> None:
    result = run_script("--name", "v5", "--zone", "z", "--dry-run", "--", *OPTIONS)
    command = command_of(result.stdout.splitlines()[-1])
    printed = subprocess.run(
        ["bash", "-c", command.split("&& ", 1)[1].replace(".venv/bin/flaxbert", "printf '%s\\n'")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.splitlines() == ["finetune", *OPTIONS]


def test_a_failing_worker_ends_the_script(tmp_path: pathlib.Path) -> None:
    for name, body in (("git", "exit 0"), ("gcloud", f'echo "$4" >> \'{tmp_path}/calls\'; [ "$4" = scp ]')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    result = run_script("--name", "v5", "--zone", "z", "--", *OPTIONS, path=str(tmp_path))
    assert result.returncode == 1
    assert (tmp_path / "calls").read_text(encoding="utf-8").split() == ["scp", "ssh"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--zone", "z", "--", "--x"], "--name is missing"),
        (["--name", "n", "--", "--x"], "--zone is missing"),
        (["--name", "n", "--zone", "z"], "the options of flaxbert finetune are missing"),
        (["--name"], "--name needs a value"),
        (["--nam", "n"], "unknown argument --nam"),
        (["--name", "n", "--zone", "z", "--folder", "a b;c", "--", "--x"], "must be a plain relative path"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], complaint: str) -> None:
    result = run_script(*arguments)
    assert result.returncode == 2
    assert complaint in result.stderr


@pytest.mark.parametrize("script", [SCRIPT, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(shellcheck: str, script: pathlib.Path) -> None:
    result = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
