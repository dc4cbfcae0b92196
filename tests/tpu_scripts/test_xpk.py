"""The script for clusters of XPK."""

import shlex

import pytest

from tests.tpu_scripts.cloud import Cloud, commands

WHERE = ("--name", "run", "--cluster", "pool")
POD = ("--image", "registry/flaxbert:tpu", "--type", "v5litepod-256")

DRY_RUNS = {
    "create": [
        *WHERE,
        *POD,
        "--slices",
        "2",
        "--storage",
        "s",
        "--env",
        "A=b c",
        "--",
        "pretrain",
        "--x",
        "a\"b'$HOME;",
    ],
    "wait": [*WHERE, "--timeout-seconds", "60"],
    "state": [*WHERE, "--project", "p", "--zone", "us-east5-a"],
    "logs": ["--name", "run", "--all", "--follow"],
    "delete": [*WHERE],
}


@pytest.mark.parametrize("action", DRY_RUNS)
def test_a_dry_run_prints_exactly_what_runs_and_runs_nothing(cloud: Cloud, action: str) -> None:
    dry = cloud.run("xpk.sh", action, "--dry-run", *DRY_RUNS[action])
    assert dry.returncode == 0, dry.stderr
    assert cloud.calls() == []
    real = cloud.run("xpk.sh", action, *DRY_RUNS[action])
    assert real.returncode == 0, real.stderr
    assert commands(dry.stdout) == commands(real.stderr, "+ ") == [call["arguments"] for call in cloud.calls()]


def test_the_command_arrives_as_it_was_written(cloud: Cloud) -> None:
    assert cloud.run("xpk.sh", "create", *DRY_RUNS["create"]).returncode == 0
    (call,) = cloud.calls()
    command = call["arguments"][call["arguments"].index("--command") + 1]
    assert shlex.split(command) == ["exec", "flaxbert", "pretrain", "--x", "a\"b'$HOME;"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["create", *WHERE, *POD], "the flaxbert command is missing"),
        (["create", *WHERE, "--type", "v6e-16", "--", "x"], "--image is missing"),
        (["create", *WHERE, *POD, "--priority", "urgent", "--", "x"], "--priority must be very-low, low"),
        (["create", *WHERE, *POD, "--max-restarts", "-1", "--", "x"], "--max-restarts must be a whole number"),
        (["state", "--name", "run"], "--cluster is missing"),
        (["logs", *WHERE], "unknown argument --cluster"),
        (["list"], "the first argument must be an action, not 'list'"),
    ],
)
def test_wrong_arguments_are_named(cloud: Cloud, arguments: list[str], complaint: str) -> None:
    result = cloud.run("xpk.sh", *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert cloud.calls() == []


def test_what_xpk_refuses_is_passed_on(cloud: Cloud) -> None:
    cloud.answer({"xpk workload create": [[1, "", "no such cluster"]]})
    result = cloud.run("xpk.sh", "create", *WHERE, *POD, "--", "pretrain")
    assert result.returncode == 1
    assert "no such cluster" in result.stderr
