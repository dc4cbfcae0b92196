"""A cloud of stand-ins in which the launchers run."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

from tests.helpers import ROOT

SCRATCH = re.compile(r"\S*/tmp\.\w+/")
PROGRAMS = ("gcloud", "kubectl", "xpk", "sbatch", "srun", "squeue", "scontrol", "scancel")


class Cloud:
    """Runs a script with the stand-ins first on its path.

    Attributes:
      folder: Where calls are noted; also the working folder of the scripts.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        programs = folder / "programs"
        programs.mkdir()
        beside = str(pathlib.Path(__file__).parent)
        program = (
            f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {beside!r})\nimport stand_in\nstand_in.main()\n"
        )
        for name in PROGRAMS:
            (programs / name).write_text(program, encoding="utf-8")
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "STAND_IN_FOLDER": str(folder),
        }
        self.environment.pop("CLOUDSDK_COMPUTE_ZONE", None)
        self.answer({})

    def answer(self, answers: dict[str, list]) -> None:
        """Sets what the stand-ins answer, and forgets their calls."""
        (self.folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
        (self.folder / "calls.jsonl").unlink(missing_ok=True)

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a script of tpu_scripts and returns its exit code and what it printed."""
        return subprocess.run(
            [str(ROOT / "tpu_scripts" / script), *arguments],
            env={**self.environment, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def calls(self) -> list[dict]:
        """Returns the calls since the last ``answer``: key, arguments and input of each."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def called(self) -> list[str]:
        """Returns the commands that were called, without what they have in common."""
        return [call["key"].split("tpu-vm ")[-1].split("queued-resources ")[-1] for call in self.calls()]


def commands(text: str, mark: str = "") -> list[list[str]]:
    """Returns the commands in what a script printed: all lines of a dry run, those that start with ``+`` of a real one.

    The archive's temporary folder differs from run to run and is left out.
    """
    lines = [line.removeprefix(mark) for line in text.splitlines() if line.startswith(mark)]
    return [[SCRATCH.sub("", word) for word in shlex.split(line)] for line in lines]
