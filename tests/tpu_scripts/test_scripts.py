"""What holds for every script of the folder."""

import pathlib
import re
import subprocess

import pytest

from tests.helpers import ROOT
from tests.tpu_scripts.cloud import Cloud

FOLDER = ROOT / "tpu_scripts"
SCRIPTS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.sh"))
SOURCED = {"common.sh", "pods.sh"}
LAUNCHERS = sorted(set(SCRIPTS) - SOURCED - {"worker.sh", "slurm_job.sh"})


@pytest.mark.slow  # make check runs shellcheck too; it takes five seconds
def test_shellcheck_finds_nothing(shellcheck: str) -> None:
    paths = [str(FOLDER / name) for name in SCRIPTS]
    result = subprocess.run([shellcheck, *paths, ".ci/run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_make_check_reads_every_script() -> None:
    result = subprocess.run(["make", "--dry-run", "check"], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = [line for line in result.stdout.splitlines() if "/shellcheck " in line]
    assert set(line.split()[1:]) == {".ci/run", *(f"tpu_scripts/{name}" for name in SCRIPTS)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_run_unless_they_are_sourced(name: str) -> None:
    assert bool(pathlib.Path(FOLDER / name).stat().st_mode & 0o111) == (name not in SOURCED)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_names_every_action_and_option(cloud: Cloud, name: str) -> None:
    helped = cloud.run(name, "--help")
    assert helped.returncode == 0, helped.stderr
    text = (FOLDER / name).read_text(encoding="utf-8") + (FOLDER / "pods.sh").read_text(encoding="utf-8")
    actions = re.findall(r"actions are: ([a-z, ]+)", text)[0].split(", ")
    assert all(re.search(rf"\b{action}\b", helped.stdout) for action in actions)
    for action in actions:
        # The complaint about an unknown option lists those that there are.
        refused = cloud.run(name, action, "--no-such-option")
        assert refused.returncode == 2
        options = re.findall(r"--[a-z-]+", refused.stderr.partition("there are:")[2].partition("\n")[0])
        assert "--dry-run" in options
        assert all(re.search(rf"{option}\b", helped.stdout) for option in options), f"{action}: {options}"


def test_the_page_names_every_script_and_no_other() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(?:tpu_scripts/)?([a-z_]+\.sh)", page)) == set(SCRIPTS)


def test_the_page_s_commands_are_understood(cloud: Cloud) -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line.startswith("tpu_scripts/")]
    assert len(commands) >= len(LAUNCHERS)
    for line in commands:
        launched = (
            re.sub(r"^(\S+) (\w+)", r"\1 \2 --dry-run", line.partition("#")[0]) if " manifest" not in line else line
        )
        result = subprocess.run(
            ["bash", "-c", launched], cwd=ROOT, env=cloud.environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{line}\n{result.stderr}"
    assert cloud.calls() == []
