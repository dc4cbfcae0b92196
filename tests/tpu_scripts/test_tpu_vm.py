"""The script for TPU VMs: creation, installation, a run on all workers, and its life through preemptions."""

import re
import shlex

import pytest

from tests.tpu_scripts.cloud import Cloud, commands

VM = "gcloud compute tpus tpu-vm"
WHERE = ("--name", "v5", "--zone", "us-east5-a", "--project", "p")
OPTIONS = ["--config", "my file.yaml", "--data.label_separator", "a\"b'$HOME;"]
RUNNING = "flaxbert-run w0 running\nflaxbert-run w1 running"
FINISHED = "flaxbert-run w0 ended 0\nflaxbert-run w1 ended 0"
STOPPED = "flaxbert-run w0 ended 143\nflaxbert-run w1 ended 143"
NOT_FOUND = [1, "", "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource was not found"]
NO_SSH = [255, "", "ssh: connect to host: Connection refused"]

DRY_RUNS = {
    "create": ["--type", "v5litepod-16", "--spot", "--service-account", "s@p", "--network", "n", "--internal-ips"],
    "install": ["--python", "3.12", "--folder", "here"],
    "run": ["--env", "A=b c", "--", "finetune", *OPTIONS],
    "wait": [],
    "resume": ["--type", "v6e-256", "--", "pretrain", *OPTIONS],
    "logs": ["--worker", "all", "--follow"],
    "state": [],
    "stop": [],
    "delete": [],
}


@pytest.mark.parametrize("action", DRY_RUNS)
def test_a_dry_run_prints_exactly_what_runs_and_runs_nothing(cloud: Cloud, action: str) -> None:
    arguments = [action, *WHERE, "--dry-run", *DRY_RUNS[action]]
    dry = cloud.run("tpu_vm.sh", *arguments)
    assert dry.returncode == 0, dry.stderr
    assert cloud.calls() == []
    cloud.answer({f"{VM} describe": ["READY"], f"{VM} ssh state": [FINISHED]})
    real = cloud.run("tpu_vm.sh", *[word for word in arguments if word != "--dry-run"])
    assert real.returncode == 0, real.stderr
    printed = commands(dry.stdout)
    assert printed == commands(real.stderr, "+ ")
    called = [[re.sub(r"\S*/tmp\.\w+/", "", word) for word in call["arguments"]] for call in cloud.calls()]
    assert [words for words in printed if words[0] != "git"] == called


def test_options_arrive_on_the_workers_as_they_were_written(cloud: Cloud) -> None:
    result = cloud.run("tpu_vm.sh", "run", *WHERE, "--env", "A=b c", "--", "finetune", *OPTIONS)
    assert result.returncode == 0, result.stderr
    (call,) = cloud.calls()
    assert "--worker=all" in call["arguments"]
    remote = shlex.split(call["arguments"][call["arguments"].index("--command") + 1])
    assert remote == ["flaxbert/tpu_scripts/worker.sh", "start", "A=b c", "--", "finetune", *OPTIONS]


def test_create_waits_until_the_machine_is_ready_and_reminds_of_its_costs(cloud: Cloud) -> None:
    cloud.answer({f"{VM} describe": ["CREATING", "CREATING", "READY"]})
    result = cloud.run("tpu_vm.sh", "create", *WHERE, "--type", "v5p-128", "--poll-seconds", "0")
    assert result.returncode == 0, result.stderr
    assert cloud.called() == ["create", "describe", "describe", "describe"]
    create = cloud.calls()[0]["arguments"]
    assert create[create.index("--version") + 1] == "v2-alpha-tpuv5"
    assert "costs money until you run: tpu_scripts/tpu_vm.sh delete --name v5 --zone us-east5-a" in result.stderr


@pytest.mark.parametrize(
    ("states", "limits", "complaint"),
    [
        (["CREATING", "PREEMPTED"], ["--poll-seconds", "0"], "v5 was not created"),
        pytest.param([[1, "", "network is down"]], ["--poll-seconds", "0"], "network is down", marks=pytest.mark.slow),
        pytest.param(
            ["CREATING"],
            ["--poll-seconds", "1", "--timeout-seconds", "1"],
            "v5 is still CREATING after 1 seconds",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_create_says_why_it_gives_up(cloud: Cloud, states: list, limits: list[str], complaint: str) -> None:
    cloud.answer({f"{VM} describe": states})
    result = cloud.run("tpu_vm.sh", "create", *WHERE, "--type", "v5p-128", *limits)
    assert result.returncode == 1
    assert complaint in result.stderr


def test_install_stops_at_the_first_step_that_fails(cloud: Cloud) -> None:
    cloud.answer({f"{VM} scp": [[1, "", "no space left"]]})
    result = cloud.run("tpu_vm.sh", "install", *WHERE)
    assert result.returncode == 1
    assert cloud.called() == ["scp"]


@pytest.mark.parametrize(
    ("answers", "code", "says"),
    [
        ([RUNNING, FINISHED], 0, "the run: finished"),
        ([RUNNING, STOPPED], 143, "the run: restart 143"),
        (["flaxbert-run w0 ended 143\nflaxbert-run w1 lost"], 143, "restart lost"),
        (["flaxbert-run w0 ended 75\nflaxbert-run w1 ended 134"], 143, "the run: restart"),
        ([RUNNING, "flaxbert-run w0 ended 1\nflaxbert-run w1 ended 134"], 1, "ended with exit code 1; see: "),
        (["flaxbert-run w0 ended 143\nflaxbert-run w1 ended 3"], 3, "ended with exit code 3"),
        (["flaxbert-run w0 ended 0\nflaxbert-run w1 none"], 1, "nothing was started"),
        pytest.param([NO_SSH], 1, "did not answer ten times in a row", marks=pytest.mark.slow),
        ([NO_SSH, NO_SSH, FINISHED], 0, "the run: finished"),
    ],
)
def test_wait_returns_how_the_run_ended(cloud: Cloud, answers: list, code: int, says: str) -> None:
    cloud.answer({f"{VM} describe": ["READY"], f"{VM} ssh state": answers})
    result = cloud.run("tpu_vm.sh", "wait", *WHERE, "--poll-seconds", "0")
    assert result.returncode == code, result.stderr
    assert says in result.stderr


def test_wait_notices_that_the_machine_was_taken_away(cloud: Cloud) -> None:
    cloud.answer({f"{VM} describe": ["PREEMPTED"], f"{VM} ssh state": [RUNNING, NO_SSH]})
    result = cloud.run("tpu_vm.sh", "wait", *WHERE, "--poll-seconds", "0")
    assert result.returncode == 143
    assert "v5 is PREEMPTED" in result.stderr


RESUME = ("resume", *WHERE, "--type", "v5litepod-16", "--spot", "--poll-seconds", "0")


def test_resume_creates_installs_and_runs_from_nothing(cloud: Cloud) -> None:
    cloud.answer(
        {
            f"{VM} describe": [NOT_FOUND, "CREATING", "READY"],
            f"{VM} ssh state": [[127, "", "no such file"], "flaxbert-run w0 none", RUNNING, FINISHED],
            f"{VM} ssh true": [NO_SSH, ""],
        }
    )
    result = cloud.run("tpu_vm.sh", *RESUME, "--", "pretrain", *OPTIONS)
    assert result.returncode == 0, result.stderr
    steps = ["describe", "create", "describe", "describe", "ssh state", "ssh true", "ssh true", "scp", "ssh install"]
    assert cloud.called() == [*steps, "ssh state", "ssh start", "ssh state", "ssh state"]


def test_resume_recreates_a_preempted_machine_and_starts_the_same_command_again(cloud: Cloud) -> None:
    cloud.answer(
        {
            f"{VM} describe": ["READY", "READY", "PREEMPTED", "PREEMPTED", "CREATING", "READY"],
            f"{VM} ssh state": ["flaxbert-run w0 none", RUNNING, NO_SSH, NO_SSH, "flaxbert-run w0 none", FINISHED],
        }
    )
    result = cloud.run("tpu_vm.sh", *RESUME, "--", "pretrain", *OPTIONS)
    assert result.returncode == 0, result.stderr
    keys = cloud.called()
    assert keys.index("ssh start") < keys.index("delete") < keys.index("create") < keys.index("ssh install")
    starts = [call["arguments"] for call in cloud.calls() if call["key"].endswith("ssh start")]
    assert len(starts) == 2
    assert starts[0] == starts[1]
    assert "restart 1 of at most 20" in result.stderr


def test_resume_only_watches_a_run_that_is_going_on(cloud: Cloud) -> None:
    cloud.answer({f"{VM} describe": ["READY"], f"{VM} ssh state": [RUNNING, RUNNING, FINISHED]})
    result = cloud.run("tpu_vm.sh", *RESUME, "--", "pretrain")
    assert result.returncode == 0, result.stderr
    assert "ssh start" not in cloud.called()


def test_resume_starts_a_stopped_run_again_but_not_for_ever(cloud: Cloud) -> None:
    cloud.answer({f"{VM} describe": ["READY"], f"{VM} ssh state": [STOPPED]})
    result = cloud.run("tpu_vm.sh", *RESUME, "--max-restarts", "2", "--", "pretrain")
    assert result.returncode == 1
    assert cloud.called().count("ssh start") == 3
    assert "given up after 2 restarts" in result.stderr


def test_resume_does_not_repeat_a_run_that_fails(cloud: Cloud) -> None:
    cloud.answer({f"{VM} describe": ["READY"], f"{VM} ssh state": ["flaxbert-run w0 none", "flaxbert-run w0 ended 2"]})
    result = cloud.run("tpu_vm.sh", *RESUME, "--", "pretrain")
    assert result.returncode == 2
    assert cloud.called().count("ssh start") == 1


def test_resume_leaves_a_machine_alone_that_somebody_stopped(cloud: Cloud) -> None:
    cloud.answer({f"{VM} describe": ["STOPPED"]})
    result = cloud.run("tpu_vm.sh", *RESUME, "--", "pretrain")
    assert result.returncode == 1
    assert "v5 is STOPPED and does not come back by itself" in result.stderr
    assert cloud.called() == ["describe"]


def test_resume_waits_until_a_machine_is_deleted_and_creates_it_again(cloud: Cloud) -> None:
    cloud.answer(
        {
            f"{VM} describe": ["DELETING", "DELETING", NOT_FOUND, "READY"],
            f"{VM} ssh state": ["flaxbert-run w0 none", FINISHED],
        }
    )
    result = cloud.run("tpu_vm.sh", *RESUME, "--", "pretrain")
    assert result.returncode == 0, result.stderr
    assert cloud.called()[:4] == ["describe", "describe", "describe", "create"]


def test_resume_fails_at_once_where_the_first_creation_does(cloud: Cloud) -> None:
    cloud.answer({f"{VM} describe": [NOT_FOUND], f"{VM} create": [[1, "", "Quota exceeded"]]})
    result = cloud.run("tpu_vm.sh", *RESUME, "--", "pretrain")
    assert result.returncode == 1
    assert "Quota exceeded" in result.stderr
    assert cloud.called() == ["describe", "create"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the first argument must be an action, not ''"),
        (["creat"], "not 'creat'; actions are: create, install,"),
        (["run", "--zone", "us-east5-a", "--", "x"], "--name is missing"),
        (["run", "--name", "n", "--", "x"], "--zone is missing"),
        (["run", "--name"], "--name needs a value"),
        (["run", "--name", "--zone", "z"], "--name needs a value"),
        (["run", "--nam", "n"], "unknown argument --nam; there are: --name"),
        (["delete", "--spot"], "unknown argument --spot"),
        (["run", "loose"], "unexpected argument 'loose'"),
        (["run", "--name", "Big", "--zone", "us-east5-a"], "--name must be at most 40 lower-case letters"),
        (["run", "--name", "n", "--zone", "east"], "--zone must be a zone such as us-east5-a, not 'east'"),
        (["run", *WHERE, "--folder", "a b;c", "--", "x"], "--folder must be a plain relative path, not 'a b;c'"),
        (["run", *WHERE, "--folder", "..", "--", "x"], "--folder must be a plain relative path"),
        (["run", *WHERE], "the flaxbert command is missing after --"),
        (
            ["run", *WHERE, "--", "--config", "x"],
            "comes a flaxbert command such as pretrain or finetune, not '--config'",
        ),
        (["run", *WHERE, "--env", "nothing", "--", "x"], "--env takes NAME=VALUE, not 'nothing'"),
        (["delete", *WHERE, "--", "pretrain"], "takes no flaxbert command"),
        (["create", *WHERE], "--type is missing"),
        (["create", *WHERE, "--type", "big"], "--type must be an accelerator type"),
        (["create", *WHERE, "--type", "v9-8"], "no TPU software is known for --type v9-8"),
        (["create", *WHERE, "--type", "v4-8", "--poll-seconds", "soon"], "--poll-seconds must be a whole number"),
        (["logs", *WHERE, "--worker", "first"], "--worker must be a number or all"),
        (["install", *WHERE, "--python=three"], "--python must be a Python version"),
        (["create", *WHERE, "--spot=yes"], "--spot is not an option with a value"),
    ],
)
def test_wrong_arguments_are_named(cloud: Cloud, arguments: list[str], complaint: str) -> None:
    result = cloud.run("tpu_vm.sh", *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert cloud.calls() == []


def test_the_zone_may_come_from_gcloud_s_variable(cloud: Cloud) -> None:
    result = cloud.run("tpu_vm.sh", "delete", "--name", "v5", "--dry-run", CLOUDSDK_COMPUTE_ZONE="us-east5-b")
    assert commands(result.stdout) == [[*VM.split(), "delete", "v5", "--zone", "us-east5-b", "--quiet"]]
