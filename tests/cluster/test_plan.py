"""What a launch would do, and what it refuses before a cluster is asked. Ray is not needed."""

import pickle

import pytest

from flaxbert.cli.main import main
from flaxbert.cluster.plan import COORDINATOR, LaunchPlan, find_command
from flaxbert.config import ClusterConfig, DedupConfig, MeshConfig, OutputConfig, PrepareConfig
from flaxbert.errors import ConfigError


def training(cluster, mesh=MeshConfig()):
    options = {"mesh": mesh, "output": OutputConfig(folder="runs/x")}
    return LaunchPlan(cluster, ("pretrain", "--train.seed", "7"), options)


def test_every_worker_of_a_run_on_cpus_is_told_its_place(tmp_path):
    plan = training(ClusterConfig(num_workers=2, folder=str(tmp_path), max_failures=3))
    assert plan.worker_words(1, "10.0.0.1:99") == [
        "pretrain", "--train.seed", "7", "--mesh.coordinator=10.0.0.1:99", "--mesh.num_processes=2", "--mesh.process_id=1",
    ]  # fmt: skip
    text = plan.to_text()
    assert "workers: 2, each with CPU 1, placed by pack, within 60 s" in text
    assert f"worker 0: flaxbert pretrain --train.seed 7 --mesh.coordinator={COORDINATOR} --mesh.num_processes=2" in text
    assert f"restarts from the newest checkpoint of {tmp_path / 'runs/x'}: at most 3" in text
    assert "environment: JAX_PLATFORMS=cpu" in text


def test_one_worker_joins_nobody():
    assert training(ClusterConfig()).worker_words(0) == ["pretrain", "--train.seed", "7"]


def test_the_trainer_joins_workers_with_devices():
    cluster = ClusterConfig(
        num_workers=4, device="tpu", topology="4x4", accelerator_type="TPU-V6E", environment={"A": "x y"}
    )
    plan = training(cluster)
    assert plan.worker_words(3) == ["pretrain", "--train.seed", "7"]
    text = plan.to_text()
    assert "each with CPU 1, a host of TPU-V6E 4x4" in text
    assert "processes joined by JaxTrainer" in text
    assert "A='x y' JAX_PLATFORMS=tpu,cpu" in text


@pytest.mark.parametrize(
    ("options", "resources"),
    [
        ({}, {"CPU": 1.0}),
        ({"device": "gpu"}, {"CPU": 1.0, "GPU": 1.0}),
        ({"device": "gpu", "cpus_per_worker": 0, "devices_per_worker": 8}, {"GPU": 8.0}),
        ({"device": "tpu"}, {"CPU": 1.0, "TPU": 1.0}),
        ({"device": "tpu", "topology": "4x4", "accelerator_type": "TPU-V6E"}, {"CPU": 1.0}),
    ],
)
def test_resources_of_a_worker(options, resources):
    assert ClusterConfig(**options).resources_per_worker == resources


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, r"cluster\.num_workers is 0"),
        ({"max_failures": -2}, r"cluster\.max_failures is -2"),
        ({"timeout_seconds": -1}, r"cluster\.timeout_seconds is -1"),
        ({"cpus_per_worker": 0}, r"cluster\.cpus_per_worker is 0 .* nothing would be set aside"),
        ({"devices_per_worker": 1}, r"cluster\.devices_per_worker is 1, but cluster\.device is cpu"),
        ({"topology": "4x4"}, r"belong to TPUs, but cluster\.device is cpu"),
        ({"device": "tpu", "topology": "4x4"}, r"go together, for example 4x4 and TPU-V6E"),
        ({"address": "ray://head:10001"}, r"client protocol is not supported"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        ClusterConfig(**options)


def test_commands_that_can_not_be_launched():
    with pytest.raises(ConfigError, match=r"Name the command that is launched after --"):
        find_command(())
    with pytest.raises(ConfigError, match=r"'pretain' can not be launched .* Did you mean 'pretrain'"):
        find_command(("pretain",))
    with pytest.raises(ConfigError, match=r"'doctor' can not be launched"):
        find_command(("doctor",))


def test_options_that_the_launcher_sets_are_refused():
    with pytest.raises(ConfigError, match=r"mesh\.process_id are set for each worker by the launcher"):
        training(ClusterConfig(num_workers=2), MeshConfig(process_id=0))
    with pytest.raises(ConfigError, match=r"several TPU hosts needs cluster\.topology"):
        training(ClusterConfig(num_workers=2, device="tpu"))
    prepare = {"prepare": PrepareConfig(num_workers=2), "dedup": DedupConfig()}
    with pytest.raises(ConfigError, match=r"prepare\.num_workers counts processes of one machine"):
        LaunchPlan(ClusterConfig(), ("prepare",), prepare)
    with pytest.raises(ConfigError, match=r"cluster\.max_failures is for training"):
        LaunchPlan(ClusterConfig(max_failures=1), ("predict",), {})
    tpus = ClusterConfig(device="tpu", topology="4x4", accelerator_type="TPU-V6E")
    with pytest.raises(ConfigError, match=r"the workers of predict work alone"):
        LaunchPlan(tpus, ("predict",), {})


def test_a_dry_run_prints_what_would_run_and_needs_no_ray(capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["launch", "--cluster.num_workers", "2", "--dry-run", "--"]
    assert main([*words, "finetune", "--data.train", "my file.csv", "--output.folder", "runs/y"]) == 0
    shown = capsys.readouterr().out
    assert "worker 1: flaxbert finetune --data.train 'my file.csv' --output.folder runs/y --mesh.coordinator=" in shown
    assert shown.endswith("Nothing was started (dry run).\n")
    assert main([*words, "prepare", "--prepare.num_shards", "5", "--dedup.near", "true"]) == 0
    shown = capsys.readouterr().out
    assert (
        "engine: Ray Data, fingerprints of all documents, compared in this process; then 5 shards, 3 or fewer" in shown
    )
    assert main([*words, "predict", "MODEL", "--input", "texts.txt"]) == 0
    shown = capsys.readouterr().out
    assert "engine: Ray Data, batches of at most 32 inputs, order kept" in shown
    assert "this process: flaxbert predict MODEL --input texts.txt" in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "Name the command"),
        (["--", "pretain"], "Did you mean 'pretrain'"),
        (["--", "pretrain", "--train.sed", "1"], "'train.seed'"),
        (["--cluster.num_wokers", "2", "--", "pretrain"], "'cluster.num_workers'"),
        (["pretrain"], "pretrain"),
    ],
)
def test_wrong_usage_is_one_clear_line(words, expected, capsys):
    assert main(["launch", *words]) in (1, 2)
    error = capsys.readouterr().err
    assert expected in error
    assert error.startswith("flaxbert: error:")
    assert error.count("\n") == 1


def test_without_ray_the_extra_is_named(tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "--", "pretrain"]) == 1
    assert "pip install 'flaxbert[ray]'" in capsys.readouterr().err


def test_the_folder_stays_where_the_launch_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = pickle.dumps(training(ClusterConfig()))
    monkeypatch.chdir("/")
    assert pickle.loads(plan).folder == tmp_path


def test_other_engines_compute_on_one_machine():
    with pytest.raises(ConfigError, match=r"--engine openvino computes on one machine"):
        LaunchPlan(ClusterConfig(), ("predict",), {"engine": "openvino", "batch_size": 8})
    assert LaunchPlan(ClusterConfig(), ("predict",), {"engine": "jax", "batch_size": 8}).command == "predict"
