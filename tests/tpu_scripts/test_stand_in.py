"""The stand-ins refuse what the real programs would refuse; without that the other tests would prove little."""

import subprocess

import pytest

from tests.tpu_scripts.cloud import Cloud


def call(cloud: Cloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=cloud.environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["gcloud", "compute", "tpus", "tpu-vm", "creat", "a"], "no such command"),
        (["gcloud", "compute", "tpus", "tpu-vm", "describe", "a", "--zones", "z"], "knows no --zones"),
        (["gcloud", "compute", "tpus", "tpu-vm", "describe", "a"], "needs --zone"),
        (["gcloud", "compute", "tpus", "tpu-vm", "describe", "a", "b", "--zone", "z"], "takes 1 words"),
        (["squeue", "--jobs"], "--jobs needs a value"),
    ],
)
def test_wrong_calls_are_refused(cloud: Cloud, arguments: list[str], complaint: str) -> None:
    result = call(cloud, *arguments)
    assert result.returncode == 64
    assert complaint in result.stderr
    assert cloud.calls() == []


def test_answers_are_played_back_in_order_and_the_last_one_stays(cloud: Cloud) -> None:
    cloud.answer({"squeue": ["first", [3, "second", "problem"]]})
    results = [call(cloud, "squeue", "--jobs", "1") for _ in range(3)]
    assert [(result.returncode, result.stdout) for result in results] == [
        (0, "first\n"),
        (3, "second\n"),
        (3, "second\n"),
    ]
    assert results[1].stderr == "problem\n"
