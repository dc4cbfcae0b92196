"""The script for GKE: the manifest, and what kubectl is asked."""

import pathlib
import re
import subprocess

import pytest
import yaml

from tests.tpu_scripts.cloud import Cloud, commands

POD = ("--image", "registry/flaxbert:tpu", "--accelerator", "v5e", "--topology", "4x8")
OPTIONS = ["--config", "my file.yaml", "--x", "a\"b'$HOME\\n: {}\n\t#$(A)", "ü"]
LIST = ["kubectl", "logs", "--selector"]


def manifest(cloud: Cloud, *arguments: str) -> dict:
    result = cloud.run("jobset.sh", "manifest", "--name", "run", *POD, *arguments)
    assert result.returncode == 0, result.stderr
    assert cloud.calls() == []
    return yaml.safe_load(result.stdout)


def pod_of(document: dict) -> dict:
    return document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def expand(text: str, variables: dict[str, str]) -> str:
    """Replaces variables as Kubernetes does in commands and values."""
    return re.sub(
        r"\$(\$|\((\w+)\))",
        lambda match: "$" if match[1] == "$" else variables.get(match[2], match[0]),
        text,
    )


def test_the_manifest_holds_one_pod_for_each_machine_of_each_slice(cloud: Cloud) -> None:
    document = manifest(cloud, "--slices", "3", "--max-restarts", "5", "--", "pretrain")
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert document["metadata"]["name"] == "run"
    assert document["spec"]["failurePolicy"]["maxRestarts"] == 5
    (job,) = document["spec"]["replicatedJobs"]
    assert job["replicas"] == 3
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (8, 8, 0)
    pod = pod_of(document)
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert {"name": "FLAXBERT_JOIN", "value": "1"} in container["env"]
    rule = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule == {"containerName": container["name"], "operator": "In", "values": [1, 2, 126, 127]}


def test_the_command_and_its_variables_arrive_as_they_were_written(cloud: Cloud) -> None:
    setting = "a\"b'\\$(HOME)$$"
    (container,) = pod_of(manifest(cloud, "--env", f"A={setting}", "--", "finetune", *OPTIONS))["containers"]
    variables = {"A": "wrong", "HOME": "wrong"}
    assert [expand(word, variables) for word in container["command"]] == ["flaxbert", "finetune", *OPTIONS]
    values = {variable["name"]: expand(variable["value"], variables) for variable in container["env"]}
    assert values["A"] == setting


def test_a_shared_folder_a_queue_an_account_and_spot_nodes_can_be_asked_for(cloud: Cloud) -> None:
    wishes = ("--claim", "data", "--mount-path", "/mnt/x", "--queue", "team", "--service-account", "trainer", "--spot")
    document = manifest(cloud, *wishes, "--run-as-root", "--", "pretrain")
    pod = pod_of(document)
    (container,) = pod["containers"]
    assert document["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    assert pod["serviceAccountName"] == "trainer"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert container["securityContext"] == {"runAsUser": 0}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"shared-memory": "/dev/shm", "shared-folder": "/mnt/x"}
    assert pod["volumes"][1] == {"name": "shared-folder", "persistentVolumeClaim": {"claimName": "data"}}
    plain = pod_of(manifest(cloud, "--", "pretrain"))
    assert "securityContext" not in plain["containers"][0]
    assert len(plain["volumes"]) == 1


def test_apply_gives_kubectl_the_manifest_that_a_dry_run_prints(cloud: Cloud, tmp_path: pathlib.Path) -> None:
    arguments = ["apply", "--name", "run", *POD, "--namespace", "team", "--", "finetune", *OPTIONS]
    dry = cloud.run("jobset.sh", arguments[0], "--dry-run", *arguments[1:])
    assert dry.returncode == 0, dry.stderr
    assert cloud.calls() == []
    assert cloud.run("jobset.sh", *arguments).returncode == 0
    (real,) = cloud.calls()
    # What was printed is run as it stands.
    subprocess.run(["bash", "-c", dry.stdout], env=cloud.environment, cwd=tmp_path, check=True)
    assert cloud.calls()[1] == real
    assert yaml.safe_load(real["input"])["metadata"]["name"] == "run"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["state"], [["kubectl", "get", "jobset", "run", "--output", "wide"], ["kubectl", "get", "pods"]]),
        (
            ["logs"],
            [
                [
                    *LIST,
                    "jobset.sigs.k8s.io/jobset-name=run,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0",
                ]
            ],
        ),
        (["logs", "--all", "--follow"], [[*LIST, "jobset.sigs.k8s.io/jobset-name=run"]]),
        (["delete", "--context", "c"], [["kubectl", "delete", "jobset", "run", "--context", "c"]]),
    ],
)
def test_a_dry_run_prints_exactly_what_runs(cloud: Cloud, arguments: list[str], expected: list[list[str]]) -> None:
    dry = cloud.run("jobset.sh", *arguments, "--name", "run", "--dry-run")
    assert cloud.calls() == []
    real = cloud.run("jobset.sh", *arguments, "--name", "run")
    assert real.returncode == 0, real.stderr
    printed = commands(dry.stdout)
    assert printed == commands(real.stderr, "+ ") == [call["arguments"] for call in cloud.calls()]
    assert [words[: len(start)] for words, start in zip(printed, expected, strict=True)] == expected


@pytest.mark.parametrize(("end", "code"), [("Completed", 0), ("Failed", 1), ([1, "", "jobsets not found"], 1)])
def test_wait_follows_the_jobset_to_its_end(cloud: Cloud, end: str | list, code: int) -> None:
    cloud.answer({"kubectl get jobset": ["", "", end]})
    result = cloud.run("jobset.sh", "wait", "--name", "run", "--poll-seconds", "0")
    assert result.returncode == code, result.stderr
    assert len(cloud.calls()) == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["apply", "--name", "run", "--", "x"], "--image is missing"),
        (["apply", "--name", "run", *POD], "the flaxbert command is missing"),
        (
            ["apply", "--name", "run", *POD, "--accelerator", "h100", "--", "x"],
            "--accelerator must be v4, v5e, v5p or v6e",
        ),
        (
            ["apply", "--name", "run", *POD, "--topology", "4x4x4", "--", "x"],
            "a topology of v5e has 2 axes, unlike 4x4x4",
        ),
        (["apply", "--name", "run", *POD, "--topology", "1x2", "--", "x"], "the 2 chips of 1x2 are no multiple of"),
        (
            ["apply", "--name", "run", *POD, "--topology", "2x2", "--slices", "2", "--", "x"],
            "only slices of several machines",
        ),
        (["apply", "--name", "run", *POD, "--image", "a b", "--", "x"], "--image must be the name of an image"),
        (["apply", "--name", "run", *POD, "--", "x", "a\x07"], "control characters can not be written into a manifest"),
        (["wait"], "--name is missing"),
        (["logs", "--name", "run", "--image", "x"], "unknown argument --image"),
    ],
)
def test_wrong_arguments_are_named(cloud: Cloud, arguments: list[str], complaint: str) -> None:
    result = cloud.run("jobset.sh", *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert result.stdout == ""
    assert cloud.calls() == []
