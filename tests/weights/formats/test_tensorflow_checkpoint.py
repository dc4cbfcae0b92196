"""TensorFlow 1 checkpoints: a real one, every kind of made-up one, and every damage named."""

import ml_dtypes
import numpy as np
import pytest

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.tensorflow_checkpoint import read_tensorflow_checkpoint
from tests.weights.formats.bundle import TYPES, block, describe, field, header, masked, table, varint, write_bundle


def _array(*shape, dtype=np.float32):
    return (np.random.default_rng(len(shape)).standard_normal(shape) * 3).astype(dtype)


def test_a_real_checkpoint(test_data):
    found = read_tensorflow_checkpoint(test_data / "tf_ckpt_tiny" / "bert_model.ckpt.index")
    weights = {name: tensor for name, tensor in found.items() if "/" not in name and name != "global_step"}
    assert len(weights) == 46
    assert len(found) == 3 * 46 + 1
    assert weights["bert.encoder.layer.1.intermediate.dense.weight"].shape == (16, 4)
    assert weights["cls.seq_relationship.weight"].shape == (2, 4)
    raw = (test_data / "tf_ckpt_tiny" / "bert_model.ckpt.data-00000-of-00001").read_bytes()
    for tensor in found.values():
        stored = np.frombuffer(raw, tensor.dtype, np.prod(tensor.shape, dtype=int), tensor.offset)
        due = stored.reshape(tensor.shape[::-1]).T if tensor.strides else stored.reshape(tensor.shape)
        np.testing.assert_array_equal(tensor.read(), due)


@pytest.mark.parametrize("dtype", TYPES)
def test_types(tmp_path, dtype):
    arrays = {f"v{len(shape)}": np.asarray(_array(*shape), dtype) for shape in [(), (3,), (0, 2), (2, 3, 4)]}
    found = read_tensorflow_checkpoint(write_bundle(tmp_path / "model.ckpt", arrays))
    floating = dtype.kind == "f" or dtype == ml_dtypes.bfloat16
    for name, array in arrays.items():
        due = array.astype(np.float32) if floating else array
        read = found[name].read()
        assert (read.dtype, read.shape, read.tobytes()) == (due.dtype, due.shape, due.tobytes())


def test_many_blocks_and_several_data_files(tmp_path):
    arrays = {f"bert/encoder/layer_{number}/output/dense/kernel": _array(3, number + 1) for number in range(150)}
    found = read_tensorflow_checkpoint(write_bundle(tmp_path / "bert_model.ckpt", arrays, num_shards=3))
    assert len({tensor.file.name for tensor in found.values()}) == 3
    for number in range(150):
        array = found[f"bert.encoder.layer.{number}.output.dense.weight"].read()
        np.testing.assert_array_equal(array.T, arrays[f"bert/encoder/layer_{number}/output/dense/kernel"])


def test_a_changed_byte_of_data_is_found_when_it_is_read(tmp_path):
    index = write_bundle(tmp_path / "model.ckpt", {"bert/a/bias": _array(4), "bert/b/bias": _array(4)})
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[3] ^= 1
    data.write_bytes(content)
    found = read_tensorflow_checkpoint(index)
    found["bert.b.bias"].read()
    with pytest.raises(WeightsError, match=r"'bert.a.bias' of .* does not fit its checksum"):
        found["bert.a.bias"].read()


FIRST = (b"", header())


def _index(folder, *entries, first=FIRST, **options):
    file = folder / "model.ckpt.index"
    file.write_bytes(table(sorted([first, *entries]), **options))
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(bytes(16))
    return file


DATA = bytes(16)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (describe(1, [5], 0, 0, DATA), "needs 20 bytes, but there are 16"),
        (describe(1, [3], 0, 0, DATA), "has 16 bytes, not 12"),
        (describe(1, [4], 0, 4, DATA), "ends at byte 20, but the file has 16"),
        (describe(1, [4], 0, 2**63, DATA), "ends at byte 9223372036854775824"),
        (describe(1, [4], 1, 0, DATA), "data file 1 of 1"),
        (describe(1, [2**62, 4], 0, 0, DATA), "malformed shape"),
        (describe(1, [2**63], 0, 0, DATA), "malformed shape"),
        (describe(1, [2**61, 0], 0, 0, b""), "no file can hold"),
        (describe(1, [1] * 40, 0, 0, DATA[:4]), "40 axes"),
        (describe(8, [2], 0, 0, DATA), "TensorFlow's type 8; flaxbert reads"),
        (describe(1, [4], 0, 0, DATA, field(7, b"")), "stored in slices"),
        (field(1, 1) + field(2, field(3, 1)), "stored in slices"),
        (field(2, 2**63), "entry of a variable is malformed"),
        (field(1, b"x"), "entry of a variable is malformed"),
        (field(2, field(2, field(1, b"x"))), "entry of a variable is malformed"),
        (b"\x0a\x7f", "field 1 is cut off"),
        (b"\x0b", "unknown kind 3"),
        (b"\x08", "a number is cut off"),
        (b"\x08" + b"\xff" * 11, "a number is too long"),
    ],
)
def test_damaged_entries(tmp_path, entry, message):
    with pytest.raises(WeightsError, match=message) as caught:
        read_tensorflow_checkpoint(_index(tmp_path, (b"v", entry)))
    assert "model.ckpt" in str(caught.value)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ((b"a", header()), "no header"),
        ((b"", header(0)), "number of data files is not plausible"),
        ((b"", header(10**9)), "number of data files is not plausible"),
        ((b"", header(1, endianness=1)), "big-endian"),
        ((b"", field(1, 2)), r"lacks model.ckpt.data-00000-of-00002"),
    ],
)
def test_damaged_headers(tmp_path, first, message):
    with pytest.raises(WeightsError, match=message):
        read_tensorflow_checkpoint(_index(tmp_path, (b"v", describe(1, [4], 0, 0, DATA)), first=first))


def test_tables_that_are_refused(tmp_path):
    entry = (b"v", describe(1, [4], 0, 0, DATA))
    for compression, message in ((1, "compressed .snappy."), (9, "compressed .method 9.")):
        with pytest.raises(WeightsError, match=message):
            read_tensorflow_checkpoint(_index(tmp_path, entry, compression=compression))
    with pytest.raises(WeightsError, match="TensorFlow 2 objects"):
        read_tensorflow_checkpoint(
            _index(tmp_path, entry, (b"_CHECKPOINTABLE_OBJECT_GRAPH", describe(7, [], 0, 0, b"")))
        )
    with pytest.raises(WeightsError, match="names are not in order"):
        read_tensorflow_checkpoint(_index(tmp_path, entry, entry))
    with pytest.raises(WeightsError, match=r"two of its variables would be called 'a.weight'"):
        read_tensorflow_checkpoint(_index(tmp_path, (b"a/gamma", entry[1]), (b"a/kernel", entry[1])))
    with pytest.raises(WeightsError, match="no UTF-8"):
        read_tensorflow_checkpoint(_index(tmp_path, (b"\xff", entry[1])))
    with pytest.raises(WeightsError, match="names no tensors"):
        read_tensorflow_checkpoint(_index(tmp_path, (b"text", describe(7, [], 0, 0, b""))))


def _bare_table(folder, content, handle=None):
    """A table whose only data block has this content."""
    content += b"\0"
    data = content + masked(content)
    index = block([(b"z", handle or varint(0) + varint(len(content) - 1))]) + b"\0"
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 1)
    file = folder / "model.ckpt.index"
    file.write_bytes(
        data + index + masked(index) + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
    )
    return file


@pytest.mark.parametrize(
    ("content", "handle", "message"),
    [
        (b"", None, "a block has no end"),
        (b"\xff\xff\xff\xff", None, "claims 4294967295 restart points"),
        (b"\x05\x00\x00" + bytes(8), None, "an entry of a block is malformed"),
        (b"\x00\x7f\x00" + bytes(8), None, "an entry of a block is malformed"),
        (b"\x00\x00" + b"\xff" * 8 + bytes(8), None, "malformed|too long|cut off"),
        (bytes(8), varint(0) + varint(2**40), "lies outside of the file"),
        (bytes(8), varint(2**63) + varint(8), "lies outside of the file"),
        (bytes(8), b"\xff", "a number is cut off"),
        (bytes(8), varint(1) + varint(8), "does not fit its checksum"),
        (
            b"\x00\xe8\x07\x00"
            + b"k" * 1000
            + b"".join(varint(1000 + n) + b"\x01\x00k" for n in range(3000))
            + bytes(8),
            None,
            "repeat more than names|malformed",
        ),
    ],
)
def test_damaged_blocks(tmp_path, content, handle, message):
    with pytest.raises(WeightsError, match=f"model.ckpt.index is no whole TensorFlow checkpoint file: .*({message})"):
        read_tensorflow_checkpoint(_bare_table(tmp_path, content, handle))


def test_changes_and_truncations_of_the_index_are_errors(tmp_path):
    index = write_bundle(tmp_path / "model.ckpt", {"bert/a/bias": _array(4), "bert/b/bias": _array(4)})
    content = index.read_bytes()
    for size in range(len(content)):
        index.write_bytes(content[:size])
        with pytest.raises(WeightsError):
            read_tensorflow_checkpoint(index)
    last_of_the_data_blocks = content.index(b"b/bias") + 20
    for place in range(last_of_the_data_blocks):
        changed = bytearray(content)
        changed[place] ^= 0x10
        index.write_bytes(changed)
        with pytest.raises(WeightsError):
            read_tensorflow_checkpoint(index)
