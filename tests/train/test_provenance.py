"""Cards tell where a result comes from and nothing about the machine."""

import pytest

from flaxbert.train.provenance import (
    device_summary,
    is_hub_id,
    library_versions,
    public_command,
    public_name,
    public_options,
)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("google/bert_uncased_L-2_H-128_A-2", "google/bert_uncased_L-2_H-128_A-2"),
        ("glue", "glue"),
        ("/home/somebody/data/train.tsv", "train.tsv"),
        ("~/films/train.csv.gz", "train.csv.gz"),
        ("../secret_customer/train.jsonl", "train.jsonl"),
        ("customer/train.tsv", "train.tsv"),
        ("C:\\Users\\somebody\\train.tsv", "train.tsv"),
        ("/models/minilm/", "minilm"),
        ("", ""),
    ],
)
def test_public_names(name, shown):
    assert public_name(name) == shown


def test_a_folder_that_exists_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "customer" / "model").mkdir(parents=True)
    assert not is_hub_id("customer/model")
    assert public_name("customer/model") == "model"
    assert is_hub_id("customer/other")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["/opt/env/bin/flaxbert", "finetune"], "flaxbert finetune"),
        (["flaxbert", "--config", "/srv/configs/sst2.yaml"], "flaxbert --config sst2.yaml"),
        (["flaxbert", "--data.train=/a b/c d.csv"], "flaxbert '--data.train=c d.csv'"),
        (["flaxbert", "--data.train=../x/y.csv"], "flaxbert --data.train=y.csv"),
        (["flaxbert", "--model.path", "org/name"], "flaxbert --model.path org/name"),
        (["flaxbert", '--data={"train": "/a/b/t.csv"}'], 'flaxbert \'--data={"train": "t.csv"}\''),
        (["flaxbert", "--x", "C:\\Users\\me\\t.csv"], "flaxbert --x t.csv"),
        (["flaxbert", "--token=hf_abcdefghijklmnopqrstuvwxyz"], "flaxbert '--token=***'"),
        (["flaxbert", "--train.learning_rate", "3e-5"], "flaxbert --train.learning_rate 3e-5"),
    ],
)
def test_public_commands(arguments, shown):
    assert public_command(arguments) == shown


def test_public_options():
    options = public_options({"model.path": "/a/b/model", "train.seed": 3, "data.path": "org/name"})
    assert options == {"model.path": "model", "train.seed": "3", "data.path": "org/name"}


def test_versions_and_devices():
    import jax

    versions = library_versions()
    assert versions["jax"] == jax.__version__
    assert {"flaxbert", "python", "flax", "numpy"} <= set(versions)
    assert device_summary() == f"{jax.device_count()} x cpu"
