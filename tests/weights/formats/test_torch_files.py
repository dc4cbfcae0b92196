"""Files of torch.save in both layouts: bit by bit what torch wrote, nothing run, every damage named."""

import collections
import io
import os
import pickle
import struct
import subprocess
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from flaxbert.errors import WeightsError
from flaxbert.weights.formats import pickle_machine
from flaxbert.weights.formats.torch_files import read_torch_file
from tests.lazy_checks import unchecked

torch = pytest.importorskip("torch", reason="needs the test extra")

LONGEST_SECONDS = 30.0
"""For programs of some ten thousand instructions on a busy machine, with types checked and memory traced."""

LAYOUTS = (True, False)
"""Values of torch.save's _use_new_zipfile_serialization."""


def _tensors():
    random = torch.Generator().manual_seed(0)
    base = torch.randn(10, 7, generator=random)
    return {
        "whole": base,
        "part of it": base[2:5, 1:3],
        "exchanged": base.t(),
        "every other": base.reshape(-1)[::2],
        "three axes": torch.randn(2, 3, 4, generator=random).permute(2, 0, 1),
        "repeated": torch.randn(1, 4, generator=random).expand(3, 4),
        "half": torch.randn(3, generator=random).half(),
        "brain": torch.randn(2, 2, generator=random).bfloat16(),
        "double": torch.randn(3, generator=random).double(),
        "long": torch.arange(5),
        "int": torch.arange(5, dtype=torch.int32),
        "short": torch.arange(5, dtype=torch.int16),
        "char": torch.arange(-2, 2, dtype=torch.int8),
        "byte": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(torch.randn(2, 3, generator=random)),
        "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def _save(file, content, layout=True, protocol=2):
    torch.save(content, file, _use_new_zipfile_serialization=layout, pickle_protocol=protocol)
    return file


def _bits(array):
    return np.ascontiguousarray(array).tobytes()


def _check(file, tensors):
    found = read_torch_file(file)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        expected = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        array = found[name].read()
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape), name
        assert _bits(array) == _bits(expected), name
        assert array.flags.writeable


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_wrote_comes_back_bit_by_bit(tmp_path, layout, protocol):
    _check(_save(tmp_path / "pytorch_model.bin", _tensors(), layout, protocol), _tensors())


def test_types_that_only_the_archive_has(tmp_path):
    tensors = {"wide": torch.tensor([1, 65535], dtype=torch.uint16)}
    _check(_save(tmp_path / "pytorch_model.bin", tensors), tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wrap", [{}, {"epoch": 3, "loss": 0.5, "names": ["a", None, True]}])
@pytest.mark.parametrize("key", ["", "state_dict", "model", "model_state_dict"])
def test_state_dictionaries_and_what_stands_around_them(tmp_path, layout, wrap, key):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    content = {key: module.state_dict(), **wrap} if key else module.state_dict()
    _check(_save(tmp_path / "model.bin", content, layout), module.state_dict())


def test_two_wrappers(tmp_path):
    _check(_save(tmp_path / "a.bin", {"model": {"state_dict": {"a": torch.ones(2)}}}), {"a": torch.ones(2)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "no state dictionary .*the entries epoch"),
        ([1, 2], "no state dictionary .*nothing with names"),
        ({"model": {"a": 1}, "state_dict": {"b": 2}}, "no state dictionary .*the entries model, state_dict"),
        ({3: torch.ones(2)}, "by a int, not by a text"),
        (torch.ones(2), "no state dictionary"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_without_a_state_dictionary(tmp_path, layout, content, message):
    with pytest.raises(WeightsError, match=message):
        read_torch_file(_save(tmp_path / "a.bin", content, layout))


class Reduced:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


CALLS = [
    (os.system, "echo", f"{os.name}.system"),
    (eval, "1", "builtins.eval"),
    (exec, "pass", "builtins.exec"),
    (getattr, "a", "builtins.getattr"),
    (subprocess.check_output, "true", "subprocess.check_output"),
    (np.dtype, "f4", "numpy.dtype"),
    (io.BytesIO, b"", "_io.BytesIO"),
    (torch.load, "x", "torch.serialization.load"),
    (collections.Counter, "a", "collections.Counter"),
]


@pytest.mark.parametrize(("function", "argument", "name"), CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_calls_are_refused_by_name_and_not_made(tmp_path, layout, function, argument, name):
    file = _save(tmp_path / "a.bin", {"a": torch.ones(1), "b": Reduced(function, argument)}, layout, protocol=4)
    with pytest.raises(WeightsError, match=rf"a.bin is a pickle that asks for {name} .* nothing was run"):
        read_torch_file(file)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_modules_are_refused(tmp_path, layout):
    with pytest.raises(WeightsError, match=r"asks for torch.nn.modules.linear.Linear .* save its state_dict"):
        read_torch_file(_save(tmp_path / "a.bin", torch.nn.Linear(2, 2), layout))


def test_torchscript_is_refused(tmp_path):
    with pytest.warns(DeprecationWarning, match="deprecated"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.bin")
    with pytest.raises(WeightsError, match="TorchScript"):
        read_torch_file(tmp_path / "a.bin")


def _rewritten(file, compression=zipfile.ZIP_STORED, **changes):
    """Packs the entries of an archive anew, some with other contents."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            short = name.split("/", 1)[1]
            content = changes.get(short.replace(".", "_"), content)
            if content is not None:
                archive.writestr(name, content)
    return file


def test_compressed_archives_are_refused(tmp_path):
    file = _rewritten(_save(tmp_path / "a.bin", {"a": torch.zeros(100)}), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match=r"compressed or encrypted entry 'a/data.pkl'.*zip -0"):
        read_torch_file(file)


def test_archives_packed_by_others_are_read(tmp_path):
    _check(_rewritten(_save(tmp_path / "a.bin", {"a": torch.arange(100)})), {"a": torch.arange(100)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_pkl": None}, "0 entries data.pkl"),
        ({"data_pkl": b""}, "1 bytes are claimed where 0 are left"),
        ({"data_pkl": b"\x80\x02]."}, "no state dictionary"),
        ({"data_pkl": b"\x80\x09]."}, "protocol 9"),
        ({"data_pkl": b"\x80\x02\xff."}, "has no place in a pickle of tensors"),
        ({"byteorder": b"big"}, "byte order b'big'"),
        ({"data/0": b"1234"}, "storage '0' has 4 bytes, where its 400 are due"),
        ({"data/0": None}, "storage '0' is not in the archive"),
    ],
)
def test_damaged_archives(tmp_path, changes, message):
    file = _rewritten(_save(tmp_path / "a.bin", {"a": torch.zeros(100)}), **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        read_torch_file(file)
    assert str(file) in str(caught.value)


def _archive(file, program, storage=bytes(16)):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", storage)
    return file


def _program(offset=0, shape=(2, 2), strides=(2, 1), storage=("storage", "FloatStorage", "0", "cpu", 4)):
    """A pickle by hand, since torch writes no tensors that leave their storage."""

    def value(item):
        if isinstance(item, tuple):
            return b"(" + b"".join(map(value, item)) + b"t"
        if isinstance(item, str):
            data = item.encode()
            return (
                b"ctorch\n" + data + b"\n" if item.endswith("Storage") else b"X" + struct.pack("<I", len(data)) + data
            )
        size = max(1, (item.bit_length() + 8) // 8)
        return b"\x8a" + bytes([size]) + item.to_bytes(size, "little", signed=True)

    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + value(storage)
        + b"Q"
        + value(offset)
        + value(shape)
        + value(strides)
        + b"\x89}tR"
    )
    return b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"s."


def test_the_program_by_hand_is_sound(tmp_path):
    tensor = read_torch_file(_archive(tmp_path / "a.bin", _program(), np.arange(4, dtype="<f4").tobytes()))["a"]
    np.testing.assert_array_equal(tensor.read(), [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 1}, "ends at byte 20 of storage '0', which has 16"),
        ({"offset": -1}, "malformed"),
        ({"offset": 2**70}, "malformed"),
        ({"strides": (3, 1)}, "ends at byte 20"),
        ({"strides": (-2, 1)}, "malformed"),
        ({"strides": (2**61, 1)}, "ends at byte"),
        ({"strides": (1,)}, "malformed"),
        ({"shape": (2**40, 2**40), "strides": (0, 0)}, "no file can hold"),
        ({"shape": (10**9,), "strides": (0,)}, "needs 4000000000 bytes, but there are"),
        ({"shape": (1,) * 40, "strides": (0,) * 40}, "malformed"),
        ({"storage": ("storage", "FloatStorage", "0", "cpu", 8)}, "16 bytes, where its 32 are due"),
        ({"storage": ("storage", "FloatStorage", "../0", "cpu", 4)}, "storage '../0' is not in the archive"),
        ({"storage": ("storage", "ComplexFloatStorage", "0", "cpu", 4)}, "asks for torch.ComplexFloatStorage"),
        ({"storage": ("module", "FloatStorage", "0", "cpu", 4)}, "only storages can be referred to"),
        ({"storage": ("storage", "float", "0", "cpu", 4)}, "type, name or size of a storage is malformed"),
    ],
)
def test_tensors_that_leave_their_storage(tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message):
        read_torch_file(_archive(tmp_path / "a.bin", _program(**changes)))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02(((", "1 bytes are claimed where 0 are left"),
        (b"\x80\x02t.", "back to a mark where there is none"),
        (b"\x80\x020.", "takes a value where there is none"),
        (b"\x80\x02h\x05.", "refers to its object 5"),
        (b"\x80\x02q\x05.", "remembers a value where there is none"),
        (b"\x80\x02}K\x01a.", "fills a PickledMap like a list"),
        (b"\x80\x02](K\x01u.", "a key without a value"),
        (b"\x80\x02](K\x01K\x02u.", "fills a list like a PickledMap"),
        (b"\x80\x02}K\x01b.", "sets attributes of what has none"),
        (b"\x80\x02K\x01)R.", "calls what is no function"),
        (b"\x80\x02ctorch\nSize\n)R.", "arguments of torch.Size do not fit"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "arguments of torch._utils._rebuild_tensor_v2 do not fit"),
        (b"\x80\x02X\xff\xff\xff\xff.", "a text of 4294967295 bytes"),
        (b"\x80\x02\x8d" + b"\xff" * 8, "a text of 18446744073709551615 bytes"),
        (b"\x80\x02c" + b"a" * 1000, "a name is longer than 256 bytes"),
        (b"\x80\x02ios\nsystem\n.", "asks for os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "asks for os.system"),
        (b"\x80\x02K\x01Q.", "refers to a storage in a way that does not fit"),
        (b"\x80\x02]" + b"]a2a" * 100_000 + b".", "no place in a pickle of tensors|no state dictionary|like a list"),
    ],
)
def test_programs_that_make_no_sense(tmp_path, program, message):
    with pytest.raises(WeightsError, match=message):
        read_torch_file(_archive(tmp_path / "a.bin", program))


def test_deep_nesting_is_harmless(tmp_path):
    with pytest.raises(WeightsError, match="no state dictionary"):
        read_torch_file(_archive(tmp_path / "a.bin", b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."))


KEEP_A_LIST = b"](" + b"X\x01\0\0\0aK\x01\x86" * 1_500 + b"eq\x00"
KEEP_A_TUPLE = b"(" + b"K\x01" * 1_500 + b"tq\x00"
KEEP_A_MAP = b"}(" + b"X\x01\0\0\0aK\x01" * 1_500 + b"uq\x00"


@pytest.mark.parametrize(
    "program",
    [
        KEEP_A_LIST + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 1_500,
        KEEP_A_TUPLE + b"ctorch\nSize\nq\x01" + b"(h\x01h\x00\x85R" * 1_500,
        KEEP_A_TUPLE + b"ctorch._tensor\n_rebuild_from_type_v2\nq\x01" + b"h\x01h\x00R" * 1_500,
        KEEP_A_MAP + b"}(" + b"X\x05\0\0\0modelh\x00" * 1_500 + b"u",
        b"](" + b"]" * 1_500 + b"a" * 1_500 + b"q\x00}h\x00" + _program()[15:-2] + b"s",
    ],
)
def test_work_does_not_multiply(tmp_path, program):
    file = _archive(tmp_path / "a.bin", b"\x80\x02" + program + b".")
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with unchecked(), pytest.raises(WeightsError):
            read_torch_file(file)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < LONGEST_SECONDS
    assert used < (1 << 18) + 100 * file.stat().st_size


def test_long_programs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_machine, "MOST_STEPS", 1000)
    with pytest.raises(WeightsError, match="more than 1000 instructions"):
        read_torch_file(_archive(tmp_path / "a.bin", b"\x80\x02" + b"]" * 1001 + b"."))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with b''"),
        (b"PK\x03\x04", "no directory at its end"),
        (pickle.dumps({"a": 1}), "not one of torch.save"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "1 bytes are claimed where 0 are left"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(7, 2), "known version 1001"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_what_is_no_file_of_torch(tmp_path, content, message):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_torch_file(file)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_truncation_is_an_error(tmp_path, layout):
    content = _save(tmp_path / "whole.bin", {"a": torch.ones(3), "b": torch.zeros(2, 2)}, layout).read_bytes()
    file = tmp_path / "a.bin"
    for size in range(len(content)):
        file.write_bytes(content[:size])
        with pytest.raises(WeightsError):
            read_torch_file(file)


def test_bytes_after_the_last_storage(tmp_path):
    file = _save(tmp_path / "a.bin", {"a": torch.ones(3)}, layout=False)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="1 bytes follow the last storage"):
        read_torch_file(file)
