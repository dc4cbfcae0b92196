"""Files of the safetensors format, and folders that appear at once or not at all."""

import errno
import hashlib
import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from flaxbert.errors import WeightsError
from flaxbert.weights.readers import DTYPES, read_safetensors_header
from flaxbert.weights.writers import (
    MANIFEST_FILE,
    check_target,
    describe_files,
    digest,
    fresh_folder,
    split_shards,
    write_safetensors,
)


def header_of(file):
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return size, json.loads(content[8 : 8 + size]), content[8 + size :]


def floats(count):
    return np.arange(count, dtype=np.float32)


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def fill(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def fail_half_way(target, error, **files):
    with fresh_folder(target, True) as folder:
        fill(folder, **files)
        raise error


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_of_the_format_is_written_bit_by_bit(tmp_path, name):
    array = np.arange(6).reshape(2, 3).astype(DTYPES[name])
    write_safetensors(tmp_path / "x.safetensors", {"a": array})
    _, header, body = header_of(tmp_path / "x.safetensors")
    assert header["a"] == {"dtype": name, "shape": [2, 3], "data_offsets": [0, array.nbytes]}
    assert body == array.tobytes()
    if name == "F8_E4M3":  # of which the reference's numpy reader knows nothing
        found = read_safetensors_header(tmp_path / "x.safetensors")[0]["a"].read().astype(array.dtype)
    else:
        found = safetensors.numpy.load_file(tmp_path / "x.safetensors")["a"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("length", range(1, 10))
def test_tensors_are_aligned_however_long_the_names_are(tmp_path, length):
    tensors = {
        "b" * length: np.ones(3, np.int8),
        "h": np.ones((1, 3), ml_dtypes.bfloat16),
        "ä": np.ones(1, np.float64),
        "f": np.ones(5, np.float32),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    size, header, body = header_of(tmp_path / "x.safetensors")
    assert size % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    assert list(header) == ["ä", "f", "h", "b" * length]
    ends = [entry["data_offsets"] for entry in header.values()]
    assert ends == [[0, 8], [8, 28], [28, 34], [34, 37]]
    assert len(body) == 37
    for name, entry in header.items():
        assert entry["data_offsets"][0] % tensors[name].dtype.itemsize == 0


def test_the_order_of_the_tensors_does_not_change_the_file(tmp_path):
    tensors = {"b": floats(3), "a": floats(2), "c": np.ones(2, np.int8), "d": np.ones(1, np.int64)}
    write_safetensors(tmp_path / "x", tensors)
    write_safetensors(tmp_path / "y", dict(reversed(tensors.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_views_scalars_and_empty_tensors_are_what_our_reader_reads(tmp_path):
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"turned": table.T, "cut": table[1::2, ::-1], "scalar": np.array(3.5, np.float32), "none": table[:0]}
    write_safetensors(tmp_path / "x", tensors)
    found, metadata = read_safetensors_header(tmp_path / "x")
    assert metadata == {"format": "pt"}
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name].read(), array)
        assert found[name].read().shape == array.shape


def test_no_tensors_are_a_file_too_and_an_old_file_is_replaced(tmp_path):
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {"a": floats(1000)})
    write_safetensors(file, {})
    assert safetensors.numpy.load_file(file) == {}


@pytest.mark.parametrize("dtype", [np.complex64, ">f4", "U3", object])
def test_a_type_that_the_format_lacks_is_named_before_a_file_is_made(tmp_path, dtype):
    tensors = {"good": floats(2), "odd": np.zeros(2, dtype)}
    with pytest.raises(WeightsError, match="Tensor 'odd' has type .*, which safetensors does not hold"):
        write_safetensors(tmp_path / "x", tensors)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([], 40, [[]]),
        ([2, 3, 5], 40, [["0", "1", "2"]]),
        ([2, 3, 5], 39, [["0", "1"], ["2"]]),
        ([2, 3, 5], 20, [["0", "1"], ["2"]]),
        ([2, 30, 1, 1], 20, [["0"], ["1"], ["2", "3"]]),
        ([30, 1, 30], 20, [["0"], ["1"], ["2"]]),
        ([1, 1, 1], 1, [["0"], ["1"], ["2"]]),
        ([0, 5, 0, 1], 20, [["0", "1", "2"], ["3"]]),
    ],
)
def test_shards_are_filled_in_order_and_larger_tensors_stand_alone(sizes, limit, expected):
    tensors = {str(number): floats(size) for number, size in enumerate(sizes)}
    shards = split_shards(tensors, limit)
    assert [list(shard) for shard in shards] == expected
    assert all(shard[name] is tensors[name] for shard in shards for name in shard)


def test_files_are_described_by_size_and_digest_the_manifest_aside(tmp_path):
    fill(tmp_path, **{"b.txt": "ä", MANIFEST_FILE: "{}", "a.txt": ""})
    fill(tmp_path / "1_Pooling", **{"config.json": "{}"})
    (tmp_path / "empty").mkdir()
    described = describe_files(tmp_path)
    assert list(described) == ["1_Pooling/config.json", "a.txt", "b.txt"]
    assert described["b.txt"] == {"size_bytes": 2, "sha256": hashlib.sha256("ä".encode()).hexdigest()}
    assert described["a.txt"] == {"size_bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    assert digest(tmp_path / "b.txt") == described["b.txt"]["sha256"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_absent_or_empty_folder_is_free(tmp_path, overwrite):
    check_target(tmp_path / "new", overwrite)
    check_target(tmp_path, overwrite)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_written_over(tmp_path, overwrite):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(WeightsError, match="model is a file; give the path of a folder"):
        check_target(tmp_path / "model", overwrite)


@pytest.mark.parametrize(
    ("count", "shown"), [(1, "f0"), (6, "f0, f1, f2, f3, f4, f5"), (7, "f0, f1, f2, f3, f4, f5 …")]
)
def test_a_full_folder_is_told_by_a_few_of_its_files(tmp_path, count, shown):
    fill(tmp_path, **{f"f{number}": "" for number in range(count)})
    with pytest.raises(WeightsError, match=rf"not empty \(it holds {shown}\)\..*--overwrite"):
        check_target(tmp_path, False)
    check_target(tmp_path, True)


def test_a_folder_appears_when_its_block_ends_and_not_before(tmp_path):
    target = tmp_path / "deep" / "model"
    with fresh_folder(target, False) as folder:
        fill(folder, **{"config.json": "{}"})
        assert folder.parent == target.parent
        assert not target.exists()
    assert names_in(tmp_path) == ["deep", "deep/model", "deep/model/config.json"]


def test_an_empty_folder_needs_no_overwriting(tmp_path):
    (tmp_path / "model").mkdir()
    with fresh_folder(tmp_path / "model", False) as folder:
        fill(folder, a="1")
    assert names_in(tmp_path) == ["model", "model/a"]


def test_a_taken_place_is_refused_before_anything_is_written(tmp_path):
    fill(tmp_path / "model", mine="1")
    with pytest.raises(WeightsError, match="not empty"), fresh_folder(tmp_path / "model", False):
        pytest.fail("the block must not run")
    assert names_in(tmp_path) == ["model", "model/mine"]


MODEL_FILES = [
    "config.json",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model-1.bin",
    "flaxbert_manifest.json",
    "vocab.txt",
    "tokenizer.json",
    "modules.json",
]


def test_another_model_replaces_the_files_of_the_old_one_and_no_others(tmp_path):
    target = fill(tmp_path / "model", **dict.fromkeys([*MODEL_FILES, "notes.txt", "my_model.safetensors"], "old"))
    fill(target / "1_Pooling", **{"config.json": "old"})
    fill(target / "runs" / "config.json.d", **{"config.json": "mine"})
    fill(target, **{"README.md": "old", "old_config.json": "mine"})
    with fresh_folder(target, True) as folder:
        fill(folder, **{"config.json": "new", "README.md": "new"})
        assert (target / "config.json").read_text("utf-8") == "old"
    kept = ["my_model.safetensors", "notes.txt", "old_config.json", "runs/config.json.d/config.json"]
    files = [name for name in names_in(target) if (target / name).is_file()]
    assert files == sorted([*kept, "README.md", "config.json"])
    assert (target / "config.json").read_text("utf-8") == (target / "README.md").read_text("utf-8") == "new"
    assert (target / kept[-1]).read_text("utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("error", [WeightsError("bad leaf"), KeyboardInterrupt(), ZeroDivisionError()], ids=repr)
def test_an_error_inside_the_block_passes_and_leaves_all_as_it_was(tmp_path, existing, error):
    if existing:
        fill(tmp_path / "model", **{"config.json": "old"})
    with pytest.raises(type(error)) as caught:
        fail_half_way(tmp_path / "model", error, **{"config.json": "half"})
    assert caught.value is error
    assert names_in(tmp_path) == (["model", "model/config.json"] if existing else [])
    assert not existing or (tmp_path / "model" / "config.json").read_text("utf-8") == "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_kind_of_full_disk_is_said_to_be_one(tmp_path, number):
    message = r"The disk is full: .*/model \(the reason; \d+ MB are free\)"
    with pytest.raises(WeightsError, match=message) as caught:
        fail_half_way(tmp_path / "model", OSError(number, "the reason"), a="half")
    assert isinstance(caught.value.__cause__, OSError)
    assert names_in(tmp_path) == []


def test_another_failure_is_told_with_its_reason(tmp_path):
    with pytest.raises(WeightsError, match=r"can not be saved to .*/model: Input/output error\. Nothing half-written"):
        fail_half_way(tmp_path / "model", OSError(errno.EIO, "Input/output error"))
    with pytest.raises(WeightsError, match="a reason without a number"):
        fail_half_way(tmp_path / "model", OSError("a reason without a number"))
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="can not be saved"), fresh_folder(tmp_path / "file" / "model", False):
        pytest.fail("the block must not run")
    assert names_in(tmp_path) == ["file"]


def test_the_old_model_comes_back_when_the_new_one_can_not_take_its_place(tmp_path, monkeypatch):
    target = fill(tmp_path / "model", **{"config.json": "old", "notes.txt": "mine"})
    original = pathlib.Path.rename

    def rename(path, goal):
        if ".partial-" in path.name:
            raise OSError(errno.EIO, "Input/output error")
        return original(path, goal)

    monkeypatch.setattr(pathlib.Path, "rename", rename)
    with pytest.raises(WeightsError, match="Input/output error"), fresh_folder(target, True) as folder:
        fill(folder, **{"config.json": "new"})
    assert names_in(tmp_path) == ["model", "model/config.json", "model/notes.txt"]
    assert (target / "config.json").read_text("utf-8") == "old"


def test_a_link_stays_a_link_and_the_folder_behind_it_is_replaced(tmp_path):
    real = fill(tmp_path / "disk" / "real", **{"config.json": "old"})
    link = tmp_path / "link"
    link.symlink_to(real)
    with fresh_folder(link, True) as folder:
        assert folder.parent == real.parent
        fill(folder, **{"config.json": "new"})
    assert link.is_symlink()
    assert (real / "config.json").read_text("utf-8") == "new"
    assert [path.name for path in real.parent.iterdir()] == ["real"]


def test_a_home_folder_can_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with fresh_folder(pathlib.Path("~/model"), False) as folder:
        fill(folder, a="1")
    assert names_in(tmp_path) == ["model", "model/a"]


def replace_config(folder):
    with fresh_folder(folder, overwrite=True) as partial:
        (partial / "config.json").write_text("new", "utf-8")


def test_an_interrupt_between_the_renames_leaves_the_old_model(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old", "utf-8")
    rename, calls = pathlib.Path.rename, []

    def interrupted(path, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            replace_config(folder)
    assert (folder / "config.json").read_text("utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_that_can_not_be_moved_along_are_said_to_be_kept(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", "utf-8")
    rename = pathlib.Path.rename

    def refuse(path, target):
        if path.name == "notes.txt":
            raise PermissionError(1, "Operation not permitted")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", refuse)
        with pytest.raises(WeightsError, match=r"was saved to .*; they are in .*old"):
            replace_config(folder)
    assert (folder / "config.json").read_text("utf-8") == "new"
    (old,) = [path for path in tmp_path.iterdir() if path.name != "model"]
    assert (old / "notes.txt").read_text("utf-8") == "mine"
