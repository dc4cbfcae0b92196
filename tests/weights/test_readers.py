"""Which weights of a folder are read, how shards come together, and what folders without weights hear."""

import json
import pathlib
import pickle

import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

from flaxbert.errors import WeightsError
from flaxbert.weights.readers import open_weights


def _shards(folder, weight_map):
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, folder / "one.safetensors")
    safetensors.numpy.save_file({"b": np.ones(3, np.float32)}, folder / "two.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_together(tmp_path):
    _shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    found = open_weights(tmp_path)
    assert {name: tensor.file.name for name, tensor in found.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, "lacks three.safetensors"),
        ({"a": "../one.safetensors"}, "no plain file name"),
        ({"a": "/etc/passwd"}, "no plain file name"),
        ({"a": "..\\one.safetensors"}, "no plain file name"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "'c' in two.safetensors"),
        ({"a": "two.safetensors", "b": "one.safetensors"}, "'a' in two.safetensors"),
        ({}, "no 'weight_map'"),
        ({"a": 3}, "no 'weight_map'"),
    ],
)
def test_bad_index_is_named(tmp_path, weight_map, message):
    _shards(tmp_path, weight_map)
    with pytest.raises(WeightsError, match=message):
        open_weights(tmp_path)


def test_tensor_in_two_shards(tmp_path):
    _shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    safetensors.numpy.save_file(
        {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}, tmp_path / "two.safetensors"
    )
    with pytest.raises(WeightsError, match="both in one.safetensors and two.safetensors"):
        open_weights(tmp_path)


def _flax(value):
    return serialization.msgpack_serialize({"dense": {"kernel": np.full((2, 3), value, np.float32)}})


def test_safetensors_come_first(tmp_path):
    (tmp_path / "flax_model.msgpack").write_bytes(_flax(1))
    assert open_weights(tmp_path)["dense.weight"].file.name == "flax_model.msgpack"
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(WeightsError, match="neither a zip archive nor a pickle"):
        open_weights(tmp_path)
    _shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert set(open_weights(tmp_path)) == {"a", "b"}
    safetensors.numpy.save_file({"c": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    assert set(open_weights(tmp_path)) == {"c"}


def test_safetensors_that_flax_wrote(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = {"bert.dense.kernel": kernel, "bert.norm.scale": np.ones(3, np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "flax"})
    found = open_weights(tmp_path)
    assert set(found) == {"bert.dense.weight", "bert.norm.weight"}
    np.testing.assert_array_equal(found["bert.dense.weight"].read(), kernel.T)
    tensors["bert.norm.kernel"] = kernel
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "flax"})
    with pytest.raises(WeightsError, match="two of its arrays have one name"):
        open_weights(tmp_path)


def test_shards_of_flax(tmp_path):
    for number in (1, 2):
        tree = {f"layer_{number}": {"kernel": np.full((2, 3), number, np.float32)}}
        (tmp_path / f"flax_model-{number}.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    weight_map = {f"layer_{number}/kernel": f"flax_model-{number}.msgpack" for number in (1, 2)}
    (tmp_path / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = open_weights(tmp_path)
    assert {name: float(tensor.read()[0, 0]) for name, tensor in found.items()} == {
        "layer_1.weight": 1,
        "layer_2.weight": 2,
    }


def test_shards_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the test extra")
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map}))
    assert {name: tensor.shape for name, tensor in open_weights(tmp_path).items()} == {"a": (2,), "b": (3,)}
    index.write_text(json.dumps({"weight_map": weight_map | {"c": "pytorch_model-00002-of-00002.bin"}}))
    with pytest.raises(WeightsError, match="'c' in pytorch_model-00002"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.bin"}}))
    with pytest.raises(WeightsError, match="no plain file name"):
        open_weights(tmp_path)


def test_two_tensorflow_checkpoints(tmp_path):
    for step in (1, 2):
        (tmp_path / f"model.ckpt-{step}.index").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"2 TensorFlow checkpoints \(model.ckpt-1.index, model.ckpt-2.index\)"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("training.pt", "file training.pt.*rename it to pytorch_model.bin"),
        ("tf_model.h5", "weights of TensorFlow's Keras"),
        ("adapter_model.safetensors", "an adapter without its base model"),
        ("README.md", "has no model.safetensors .*it holds README.md"),
    ],
)
def test_folders_without_readable_weights(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match=message):
        open_weights(tmp_path)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_that_a_pickle_names_is_run(tmp_path, protocol):
    mark = tmp_path / "the pickle ran"

    class Bomb:
        def __reduce__(self):
            return (pathlib.Path.touch, (mark,))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb()}, protocol))
    with pytest.raises(WeightsError, match="pytorch_model.bin"):
        open_weights(tmp_path)
    assert not mark.exists()
