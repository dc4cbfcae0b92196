"""What TensorBoard and MLflow are shown of a registry."""

import pytest

from flaxbert.cli.main import main
from flaxbert.errors import ConfigError
from flaxbert.model import load
from flaxbert.registry import Registry
from flaxbert.registry.mlflow_mirror import DIGEST_TAG, NUMBER_TAG, mirror
from flaxbert.registry.tensorboard import write_hparams
from tests.weights.tiny import CONFIG, write_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return [
        load(write_tiny(base / f"drawn{n}", config=CONFIG.replace(initializer_range=0.1 + n))).save(base / f"model{n}")
        for n in range(3)
    ]


@pytest.fixture
def registry(tmp_path, folders) -> Registry:
    made = Registry(str(tmp_path / "registry"))
    made.add("films", folders[0], metrics={"accuracy": 0.8}, data={"digest": "abc"}, note="the first")
    made.add("films", folders[1], metrics={"accuracy": 0.9}, parent="films:1", aliases=["champion"])
    return made


@pytest.fixture
def mlflow_uri(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return f"file:{tmp_path / 'mlflow'}"


def test_tensorboard_gets_a_run_for_each_version(registry, tmp_path, folders):
    assert write_hparams(registry, "films", tmp_path / "runs") == [1, 2]
    content = b"".join(file.read_bytes() for file in sorted((tmp_path / "runs" / "films" / "2").rglob("events*")))
    for word in (b"accuracy", b"films:1", b"num_hidden_layers", b"sequence-classification", b"_hparams_/"):
        assert word in content
    assert b"the first" not in content
    before = sorted(tmp_path.glob("runs/**/events*"))
    registry.add("films", folders[2])
    assert write_hparams(registry, "films", tmp_path / "runs") == [3]
    assert set(before) < set(tmp_path.glob("runs/**/events*"))
    with pytest.raises(ConfigError, match="no model 'film'"):
        write_hparams(registry, "film", tmp_path / "runs")


def test_mlflow_follows_versions_and_aliases(registry, mlflow_uri, folders, tmp_path):
    from mlflow import MlflowClient

    done = mirror(registry, "films", mlflow_uri)
    assert done.added == {1: 1, 2: 2}
    client = MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri)
    first, champion = client.get_model_version("films", "1"), client.get_model_version_by_alias("films", "champion")
    assert (first.description, int(champion.version)) == ("the first", 2)
    assert champion.tags == {DIGEST_TAG: registry.find("films:2").digest, NUMBER_TAG: "2"}
    run = client.get_run(champion.run_id)
    assert run.data.metrics == {"accuracy": 0.9}
    assert run.data.params["parent"] == "films:1"
    assert run.data.params["num_hidden_layers"] == str(CONFIG.num_hidden_layers)
    copied = client.download_artifacts(champion.run_id, "model", str(tmp_path))
    assert load(copied).predict(["a fine film"]) == load(folders[1]).predict(["a fine film"])

    registry.add("films", folders[2], aliases=["canary"])
    registry.promote("films:1")
    registry.promote("films:3", "canary")
    again = mirror(registry, "films", mlflow_uri, files=False)
    assert (again.added, again.aliases, again.removed) == ({3: 3}, {"champion": 1, "canary": 3}, ())
    assert client.get_model_version("films", "3").source.endswith(registry.find("films:3").folder)
    registry.remove_alias("films", "canary")
    assert mirror(registry, "films", mlflow_uri).removed == ("canary",)
    assert {name: int(number) for name, number in client.get_registered_model("films").aliases.items()} == {
        "champion": 1
    }


def test_models_of_another_origin_are_left_alone(registry, mlflow_uri):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri)
    client.create_registered_model("films")
    client.create_model_version("films", "somewhere")
    with pytest.raises(ConfigError, match="versions of another origin"):
        mirror(registry, "films", mlflow_uri)
    with pytest.raises(ConfigError, match="MLflow at nowhere://x refuses"):
        mirror(registry, "films", "nowhere://x")


def test_both_are_commands(registry, mlflow_uri, tmp_path, capsys):
    where = ["--registry", registry.location]
    assert main(["models", "tensorboard", "films", str(tmp_path / "runs"), *where]) == 0
    assert main(["models", "tensorboard", "films", str(tmp_path / "runs"), *where]) == 0
    assert main(["models", "mlflow", "films", mlflow_uri, *where]) == 0
    printed = capsys.readouterr().out
    assert "Wrote 2 versions of films" in printed
    assert "films is there already" in printed
    assert "films:2 is version 2 in MLflow" in printed
    assert "Aliases in MLflow: champion 2." in printed
