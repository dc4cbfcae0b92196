"""Files of flax.serialization: bit by bit what Flax wrote, under torch's names and with torch's axes."""

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.flax_weights import read_flax_file, torch_name
from flaxbert.weights.formats.stored import DTYPES_BY_NAME


def _write(folder, tree):
    file = folder / "flax_model.msgpack"
    file.write_bytes(tree if isinstance(tree, bytes) else serialization.msgpack_serialize(tree))
    return file


def _array(*shape, dtype=np.float32):
    return (np.random.default_rng(len(shape)).standard_normal(shape) * 3).astype(dtype)


def test_names_and_axes(tmp_path):
    tree = {
        "bert": {
            "embeddings": {"word_embeddings": {"embedding": _array(5, 4)}, "LayerNorm": {"scale": _array(4)}},
            "encoder": {
                "layer": {"0": {"attention": {"self": {"query": {"kernel": _array(4, 6), "bias": _array(6)}}}}}
            },
        },
        "cls": {"predictions": {"bias": _array(5)}},
    }
    found = read_flax_file(_write(tmp_path, tree))
    assert {name: tensor.shape for name, tensor in found.items()} == {
        "bert.embeddings.word_embeddings.weight": (5, 4),
        "bert.embeddings.LayerNorm.weight": (4,),
        "bert.encoder.layer.0.attention.self.query.weight": (6, 4),
        "bert.encoder.layer.0.attention.self.query.bias": (6,),
        "cls.predictions.bias": (5,),
    }
    kernel = found["bert.encoder.layer.0.attention.self.query.weight"].read()
    np.testing.assert_array_equal(
        kernel, tree["bert"]["encoder"]["layer"]["0"]["attention"]["self"]["query"]["kernel"].T
    )
    assert kernel.flags.writeable
    wrapped = read_flax_file(_write(tmp_path, {"params": tree}))
    assert wrapped.keys() == found.keys()


@pytest.mark.parametrize("name", DTYPES_BY_NAME)
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3, 4)])
def test_types_and_shapes(tmp_path, name, shape):
    array = np.asarray(_array(*shape), DTYPES_BY_NAME[name])
    read = read_flax_file(_write(tmp_path, {"a": {"bias": array, "kernel": array}}))
    floating = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    expected = array.astype(np.float32) if floating else array
    for tensor, due in ((read["a.bias"], expected), (read["a.weight"], expected.T)):
        found = tensor.read()
        assert (found.dtype, found.shape) == (due.dtype, due.shape)
        assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(due).tobytes()


def test_numpy_scalars(tmp_path):
    found = read_flax_file(_write(tmp_path, {"scale": np.float32(2.5)}))
    assert found["weight"].read() == np.float32(2.5)


def test_arrays_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    tree = {"a": {"kernel": _array(7, 5), "embedding_table": _array(9, 3, dtype=np.float16)}}
    file = _write(tmp_path, tree)
    assert b"__msgpack_chunked_array__" in file.read_bytes()
    found = read_flax_file(file)
    assert len(found["a.weight"].pieces) == 4
    np.testing.assert_array_equal(found["a.weight"].read(), tree["a"]["kernel"].T)
    np.testing.assert_array_equal(found["a.embedding_table"].read(), tree["a"]["embedding_table"].astype(np.float32))


def _packed(shape, kind, data):
    return msgpack.ExtType(1, msgpack.packb((shape, kind, data)))


CHUNKS = {"__msgpack_chunked_array__": True, "shape": {"0": 4}}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1], "holds no dictionary"),
        ({}, "holds no arrays"),
        ({"a": 1}, "'a' is a int, not an array"),
        ({"a": {"b": [1.0]}}, "'a/b' is a list, not an array"),
        ({"a": b"123"}, "'a' is an extension of type None"),
        ({"a": msgpack.ExtType(2, b"12")}, "'a' is an extension of type 2"),
        ({"a": msgpack.ExtType(1, b"\xc0")}, "'a' is not shape, type and bytes"),
        ({"a": msgpack.ExtType(1, b"\x93")}, "claimed where 0"),
        (
            {"a": msgpack.ExtType(1, msgpack.packb(((2,), "float32", b"12345678")) + b"\xc0")},
            "not shape, type and bytes",
        ),
        ({"a": _packed((2,), "float32", b"1234567")}, "needs 8 bytes, but there are 7"),
        ({"a": _packed((2,), "float32", b"123456789")}, "has 9 bytes, not 8"),
        ({"a": _packed((-2,), "float32", b"12345678")}, "malformed shape"),
        ({"a": _packed((2**62, 2**62), "float32", b"12345678")}, "malformed shape"),
        ({"a": _packed((2**61, 0), "float32", b"")}, "no file can hold"),
        ({"a": _packed((1,) * 40, "float32", b"1234")}, "40 axes"),
        ({"a": _packed("2", "float32", b"12345678")}, "malformed shape"),
        ({"a": _packed((1,), "complex64", b"12345678")}, "type complex64; flaxbert reads"),
        ({"a": _packed((1,), "object", b"12345678")}, "type object; flaxbert reads"),
        ({"a": _packed((1,), 3, b"1234")}, "not shape, type and bytes"),
        ({"a": {"kernel": _packed((1,), "int8", b"1"), "scale": _packed((1,), "int8", b"1")}}, "called 'a.weight'"),
        ({"a": {"kernel" * 99: {"kernel" * 99: _packed((1,), "int8", b"1")}}}, "more than 1000 letters"),
        ({"a": CHUNKS}, "lacks its shape or its chunks"),
        ({"a": CHUNKS | {"chunks": {"1": _packed((4,), "int8", b"1234")}}}, "lacks its shape or its chunks"),
        ({"a": CHUNKS | {"chunks": {"0": CHUNKS}}}, "lacks its shape or its chunks"),
        ({"a": CHUNKS | {"chunks": {"0": _packed((3,), "int8", b"123")}}}, "needs 4 bytes, but there are 3"),
        ({"a": CHUNKS | {"chunks": {"0": _packed((5,), "int8", b"12345")}}}, "do not make 4 values"),
        (
            {"a": CHUNKS | {"chunks": {"0": _packed((2,), "int8", b"12"), "1": _packed((2,), "uint8", b"12")}}},
            "do not make 4 values",
        ),
    ],
)
def test_damage_is_named(tmp_path, tree, message):
    file = _write(tmp_path, msgpack.packb(tree))
    with pytest.raises(WeightsError, match=message) as caught:
        read_flax_file(file)
    assert str(file) in str(caught.value)


def test_bytes_after_the_tree(tmp_path):
    file = _write(tmp_path, serialization.msgpack_serialize({"bias": _array(2)}) + b"\xc0")
    with pytest.raises(WeightsError, match="1 bytes follow the dictionary"):
        read_flax_file(file)


def test_every_truncation_is_an_error(tmp_path):
    content = serialization.msgpack_serialize({"a": {"kernel": _array(2, 3), "bias": _array(3)}})
    for size in range(len(content)):
        with pytest.raises(WeightsError):
            read_flax_file(_write(tmp_path, content[:size]))


def test_torch_name():
    assert torch_name("params/bert/pooler/dense/kernel") == "bert.pooler.dense.weight"
    assert torch_name("lm_head/layer_norm/scale") == "lm_head.layer_norm.weight"
    assert torch_name("cls/predictions/bias") == "cls.predictions.bias"
