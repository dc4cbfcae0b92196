"""The scripts for Slurm: what is submitted, and what the job does when it is stopped."""

import itertools
import os
import shlex
import signal
import subprocess
import time

import pytest

from tests.helpers import ROOT
from tests.tpu_scripts.cloud import Cloud, commands

JOB_SCRIPT = str(ROOT / "tpu_scripts" / "slurm_job.sh")
HOSTS = ("--name", "run", "--nodes", "2", "--gpus", "8")
OPTIONS = ["--config", "my file.yaml", "--x", "a\"b'$HOME;"]
PATIENCE_SECONDS = 120.0


def program(cloud: Cloud, body: str) -> str:
    path = cloud.folder / "flaxbert"
    path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_submit_asks_for_one_process_a_node_a_warning_and_a_place_in_the_queue(cloud: Cloud) -> None:
    cloud.answer({"sbatch": ["4711"]})
    flaxbert = program(cloud, "exit 0")
    arguments = ["submit", *HOSTS, "--time", "1-00:00:00", "--cpus", "64", "--memory", "0", "--program", flaxbert]
    arguments += ["--env", "A=b c", "--", "pretrain", *OPTIONS]
    dry = cloud.run("slurm.sh", arguments[0], "--dry-run", *arguments[1:])
    assert cloud.calls() == []
    assert not (cloud.folder / "runs").exists()
    result = cloud.run("slurm.sh", *arguments)
    assert (result.returncode, result.stdout) == (0, "4711\n")
    assert (cloud.folder / "runs" / "slurm").is_dir()
    assert commands(dry.stdout) == commands(result.stderr, "+ ")
    (call,) = cloud.calls()
    words = call["arguments"]
    assert words == commands(dry.stdout)[-1]
    assert {"--requeue", "--parsable"} < set(words)
    flags = dict(itertools.pairwise(words))
    assert flags["--signal"] == "B:TERM@120"
    assert (flags["--nodes"], flags["--ntasks-per-node"], flags["--gpus-per-node"]) == ("2", "1", "8")
    assert flags["--open-mode"] == "append"
    assert flags["--output"] == str(cloud.folder / "runs" / "slurm" / "%j.log")
    assert words[words.index(JOB_SCRIPT) + 1 :] == ["20", "env", "A=b c", flaxbert, "pretrain", *OPTIONS]


def test_submit_needs_flaxbert(cloud: Cloud) -> None:
    result = cloud.run("slurm.sh", "submit", *HOSTS, "--program", "nowhere/flaxbert", "--", "pretrain")
    assert result.returncode == 1
    assert "nowhere/flaxbert is no program; run make setup" in result.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["state"], [["squeue", "--jobs", "7", "--states", "all", "--format", "%i %j %T %M %D %R"]]),
        (["cancel"], [["scancel", "7"]]),
        (["stop"], [["scontrol", "update", "JobId=7", "Requeue=0"], ["scancel", "--batch", "--signal=TERM", "7"]]),
        (["logs", "--follow", "--log-folder", "l"], [["tail", "-n", "+1", "-F", "HERE/l/7.log"]]),
    ],
)
def test_a_job_is_looked_at_and_ended_by_its_number(
    cloud: Cloud, arguments: list[str], expected: list[list[str]]
) -> None:
    dry = cloud.run("slurm.sh", *arguments, "--job", "7", "--dry-run")
    assert commands(dry.stdout.replace(str(cloud.folder), "HERE")) == expected
    if expected[0][0] != "tail":
        assert cloud.run("slurm.sh", *arguments, "--job", "7").returncode == 0
        assert [call["arguments"] for call in cloud.calls()] == expected


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["submit", "--name", "run", "--gpus", "8", "--", "x"], "--nodes is missing"),
        (["submit", *HOSTS], "the flaxbert command is missing"),
        (["submit", *HOSTS, "--nodes", "two", "--", "x"], "--nodes must be a whole number from 1 on, not 'two'"),
        (["submit", *HOSTS, "--time", "a day", "--", "x"], "--time must be a time as sbatch takes it"),
        (["state"], "--job is missing"),
        (["cancel", "--job", "run"], "--job must be the number that submit printed"),
        (["start"], "not 'start'; actions are: submit, state, logs, stop, cancel"),
    ],
)
def test_wrong_arguments_are_named(cloud: Cloud, arguments: list[str], complaint: str) -> None:
    result = cloud.run("slurm.sh", *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert cloud.calls() == []


def start_job(cloud: Cloud, body: str, *options: str, **variables: str) -> subprocess.Popen[str]:
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        **variables,
    }
    return subprocess.Popen(
        [JOB_SCRIPT, "5", program(cloud, body), "pretrain", *options],
        env={**cloud.environment, **slurm},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end_of(job: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = job.communicate(timeout=PATIENCE_SECONDS)
    return job.returncode, output


def test_the_job_runs_one_process_a_node_with_all_gpus(cloud: Cloud) -> None:
    body = 'printf "<%s>" "$@" "$JAX_LOCAL_DEVICE_IDS"'
    code, output = end_of(start_job(cloud, body, *OPTIONS, SLURM_CPUS_PER_TASK="64"))
    assert code == 0
    assert "".join(f"<{word}>" for word in ["pretrain", *OPTIONS, "0,1,2,3"]) in output
    (call,) = cloud.calls()
    assert shlex.join(call["arguments"]).startswith("srun --nodes=2 --ntasks=2 --ntasks-per-node=1 ")
    assert "--cpus-per-task=64" in call["arguments"]


def start_saving_job(cloud: Cloud) -> subprocess.Popen[str]:
    """Starts a job whose processes save when they are asked to stop, once they run."""
    saving = "trap 'sleep 0.3; echo saved; exit 143' TERM; touch ready; for _ in {1..2000}; do sleep 0.01; done"
    job = start_job(cloud, f"cd '{cloud.folder}'; {saving}")
    end = time.monotonic() + PATIENCE_SECONDS
    while not (cloud.folder / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    return job


def test_a_cancelled_job_is_signalled_once(cloud: Cloud) -> None:
    cloud.answer({"squeue": ["COMPLETING"]})
    job = start_saving_job(cloud)
    os.kill(job.pid, signal.SIGTERM)
    os.kill(int((cloud.folder / "step").read_text(encoding="utf-8")), signal.SIGTERM)
    code, output = end_of(job)
    assert code == 143
    assert "saved" in output
    assert {call["key"] for call in cloud.calls()} == {"srun", "squeue"}


def test_a_job_that_slurm_stops_saves_and_goes_back_into_the_queue(cloud: Cloud) -> None:
    cloud.answer({"squeue": ["RUNNING"]})
    job = start_saving_job(cloud)
    os.kill(job.pid, signal.SIGTERM)
    code, output = end_of(job)
    assert code == 0
    assert output.index("asked to stop") < output.index("saved") < output.index("queued again")
    assert [call["arguments"] for call in cloud.calls()[1:]] == [
        ["squeue", "--noheader", "--jobs=7", "--format=%T"],
        ["scancel", "--signal=TERM", "7"],
        ["squeue", "--noheader", "--jobs=7", "--format=%T"],
        ["scontrol", "requeue", "7"],
    ]


@pytest.mark.parametrize(
    ("code", "state", "variables", "says"),
    [
        (143, "CANCELLED", {}, "the job is CANCELLED; it is not queued again here"),
        (143, "", {}, "the job is gone"),
        (
            143,
            "RUNNING",
            {"SLURM_RESTART_COUNT": "5"},
            "not queued again after 5 restarts",
        ),
        (1, "RUNNING", {}, "ended with exit code 1"),
    ],
)
def test_other_ends_are_final(cloud: Cloud, code: int, state: str, variables: dict[str, str], says: str) -> None:
    cloud.answer({"squeue": [state]})
    ended, output = end_of(start_job(cloud, f"exit {code}", **variables))
    assert ended == code
    assert says in output
    assert "scontrol requeue" not in [call["key"] for call in cloud.calls()]


@pytest.mark.parametrize("end", ["exit 143", "exit 75", "kill -ABRT $$"])
def test_a_run_that_saved_hung_or_was_killed_is_queued_again(cloud: Cloud, end: str) -> None:
    cloud.answer({"squeue": ["RUNNING"]})
    code, output = end_of(start_job(cloud, end))
    assert code == 0, output
    assert cloud.calls()[-1]["key"] == "scontrol requeue"


def test_a_stopped_job_that_slurm_does_not_queue_again_stays_saved(cloud: Cloud) -> None:
    cloud.answer({"squeue": ["RUNNING"], "scontrol requeue": [[1, "", "Requested operation is presently disabled"]]})
    code, output = end_of(start_job(cloud, "exit 143"))
    assert code == 143
    assert "Slurm does not queue the job again; what is saved stays" in output


def test_the_error_of_one_process_counts_more_than_the_end_of_its_peers(cloud: Cloud) -> None:
    told_by_srun = "srun: error: host1: task 1: Exited with exit code 3"
    code, output = end_of(start_job(cloud, f"echo '{told_by_srun}' >&2; kill -ABRT $$"))
    assert code == 3
    assert output.index(told_by_srun) < output.index("ended with exit code 3")


def test_the_gpus_may_be_chosen_by_hand(cloud: Cloud) -> None:
    code, output = end_of(start_job(cloud, 'echo "<$JAX_LOCAL_DEVICE_IDS>"', JAX_LOCAL_DEVICE_IDS="1,3"))
    assert code == 0
    assert "<1,3>" in output
