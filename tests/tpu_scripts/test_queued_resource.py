"""The script for queued resources: what differs from TPU VMs."""

import re

import pytest

from tests.helpers import slow_unless
from tests.tpu_scripts.cloud import Cloud, commands

QUEUE = "gcloud compute tpus queued-resources"
WHERE = ("--name", "q", "--zone", "us-east5-a")
FINISHED = "flaxbert-run w0 ended 0\nflaxbert-run w1 ended 0"

DRY_RUNS = {
    "create": ["--type", "v6e-256", "--slices", "2", "--reserved", "--valid-until", "6h", "--subnetwork", "s"],
    "await": [],
    "install": [],
    "run": ["--", "finetune", "--config", "my file.yaml"],
    "wait": [],
    "resume": ["--type", "v5litepod-16", "--spot", "--", "pretrain"],
    "logs": ["--slice", "1", "--worker", "2"],
    "state": [],
    "stop": [],
    "delete": [],
}


@pytest.mark.parametrize("action", slow_unless(lambda action: action in {"create", "resume", "delete"}, DRY_RUNS))
def test_a_dry_run_prints_exactly_what_runs_and_runs_nothing(cloud: Cloud, action: str) -> None:
    arguments = [action, *WHERE, "--dry-run", *DRY_RUNS[action]]
    dry = cloud.run("queued_resource.sh", *arguments)
    assert dry.returncode == 0, dry.stderr
    assert cloud.calls() == []
    cloud.answer({f"{QUEUE} describe": ["ACTIVE"], f"{QUEUE} ssh state": [FINISHED]})
    real = cloud.run("queued_resource.sh", *[word for word in arguments if word != "--dry-run"])
    assert real.returncode == 0, real.stderr
    printed = commands(dry.stdout)
    assert printed == commands(real.stderr, "+ ")
    called = [[re.sub(r"\S*/tmp\.\w+/", "", word) for word in call["arguments"]] for call in cloud.calls()]
    assert [words for words in printed if words[0] != "git"] == called


@pytest.mark.parametrize(
    ("slices", "named"), [("1", ["--node-id", "q"]), ("4", ["--node-count", "4", "--node-prefix", "q"])]
)
def test_one_slice_has_a_name_and_several_have_a_prefix(cloud: Cloud, slices: str, named: list[str]) -> None:
    result = cloud.run("queued_resource.sh", "create", *WHERE, "--type", "v5p-128", "--slices", slices, "--dry-run")
    (create,) = commands(result.stdout)
    start = create.index("--zone") + 2
    assert create[start : start + len(named)] == named


def test_await_tells_each_state_until_the_tpus_are_given(cloud: Cloud) -> None:
    cloud.answer({f"{QUEUE} describe": ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING", "ACTIVE"]})
    result = cloud.run("queued_resource.sh", "await", *WHERE, "--poll-seconds", "0")
    assert result.returncode == 0, result.stderr
    states = re.findall(r"q is (\w+)", result.stderr)
    assert states == ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert "costs money until you run" in result.stderr


@pytest.mark.parametrize("end", slow_unless(lambda end: end == "SUSPENDED", ["FAILED", "SUSPENDED", "DELETING"]))
def test_await_ends_where_nothing_will_come(cloud: Cloud, end: str) -> None:
    cloud.answer({f"{QUEUE} describe": ["PROVISIONING", end]})
    result = cloud.run("queued_resource.sh", "await", *WHERE, "--poll-seconds", "0")
    assert result.returncode == 1
    assert "nothing was given to q" in result.stderr


def test_resume_asks_again_after_a_suspension(cloud: Cloud) -> None:
    cloud.answer(
        {
            f"{QUEUE} describe": ["SUSPENDING", "SUSPENDING", "SUSPENDED", "SUSPENDED", "PROVISIONING", "ACTIVE"],
            f"{QUEUE} ssh state": ["flaxbert-run w0 none", FINISHED],
        }
    )
    arguments = ("--type", "v5litepod-16", "--spot", "--poll-seconds", "0", "--", "pretrain")
    result = cloud.run("queued_resource.sh", "resume", *WHERE, *arguments)
    assert result.returncode == 0, result.stderr
    keys = cloud.called()
    assert keys.index("delete") < keys.index("create") < keys.index("ssh start")
    delete = next(call["arguments"] for call in cloud.calls() if call["key"].endswith("delete"))
    assert "--force" in delete


def test_every_worker_of_every_slice_is_reached(cloud: Cloud) -> None:
    assert cloud.run("queued_resource.sh", "stop", *WHERE).returncode == 0
    (call,) = cloud.calls()
    assert {"--node=all", "--worker=all"} <= set(call["arguments"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["create", *WHERE, "--type", "v4-8", "--spot", "--reserved"],
            "only one of --spot, --reserved and --guaranteed",
        ),
        (["create", *WHERE, "--type", "v4-8", "--slices", "0"], "--slices must be a whole number from 1 on"),
        (
            ["create", *WHERE, "--type", "v4-8", "--valid-until", "tomorrow"],
            "--valid-until must be a duration such as 6h",
        ),
        (["await", *WHERE, "--type", "v4-8"], "unknown argument --type"),
        (["logs", *WHERE, "--slice", "x"], "--slice must be a number or all"),
    ],
)
def test_wrong_arguments_are_named(cloud: Cloud, arguments: list[str], complaint: str) -> None:
    result = cloud.run("queued_resource.sh", *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert cloud.calls() == []
