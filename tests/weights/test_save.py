"""Writing folders: at once or not at all, exact on the way back, readable by the reference implementation."""

import errno
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from flaxbert.core.arrays import QuantizedArray, SparseArray
from flaxbert.core.trees import flatten_names, map_leaves, stack_layers
from flaxbert.errors import WeightsError
from flaxbert.weights import writers
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.save import save_checkpoint, verify_checkpoint
from flaxbert.weights.sentence_transformers import SentencePooling
from tests.weights.tiny import CONFIG, random_params

TASK = "sequence-classification"


def _save(folder, params=None, **options):
    params = random_params() if params is None else params
    return save_checkpoint(folder, config=CONFIG, task=TASK, params=params, **options)


def _quantize(name, leaf):
    if not name.endswith("kernel"):
        return leaf
    scale = np.abs(leaf).max(axis=0, keepdims=True) / 127
    return QuantizedArray(np.round(leaf / scale).astype(np.int8), scale.astype(np.float32))


def _prune(name, leaf):
    return SparseArray(leaf, np.abs(leaf) > 0.5) if name.endswith("kernel") else leaf


def _stored(tree):
    return jax.tree.leaves(tree)


def test_reference_reads_what_was_written(tmp_path):
    folder = _save(tmp_path / "model")
    with safetensors.safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(file.keys()) == len(flatten_names(random_params()))
        kernel = file.get_tensor("bert.encoder.layer.0.attention.self.query.weight")
    np.testing.assert_array_equal(kernel, random_params()["encoder"]["layers"]["0"]["attention"]["query"]["kernel"].T)


def test_stacked_layers_are_written_like_numbered_ones(tmp_path):
    plain, stacked = _save(tmp_path / "plain"), _save(tmp_path / "stacked", stack_layers(random_params()))
    assert (plain / "model.safetensors").read_bytes() == (stacked / "model.safetensors").read_bytes()


def test_shards_hold_everything_and_stay_below_the_limit(tmp_path):
    folder = _save(tmp_path / "model", max_shard_bytes=4000)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert all(sum(a.nbytes for a in safetensors.numpy.load_file(shard).values()) <= 4000 for shard in shards)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert all(
        np.array_equal(*pair)
        for pair in zip(_stored(load_checkpoint(folder).params), _stored(random_params()), strict=True)
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_quantized_leaves_come_back_exactly_and_are_small(tmp_path, stacked):
    params = map_leaves(_quantize, random_params())
    folder = _save(tmp_path / "int8", stack_layers(params) if stacked else params)
    loaded = load_checkpoint(folder)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    assert all(np.array_equal(*pair) for pair in zip(_stored(loaded.params), _stored(params), strict=True))
    assert loaded.params["pooler"]["dense"]["kernel"].codes.dtype == np.int8
    assert loaded.account.initialized == ()
    dense = _save(tmp_path / "float32")
    saved = sum(leaf.size * 3 for name, leaf in flatten_names(random_params()).items() if name.endswith("kernel"))
    sizes = [sum(file.stat().st_size for file in place.glob("*.safetensors")) for place in (dense, folder)]
    assert sizes[0] - sizes[1] > 0.5 * saved


def test_stock_transformers_refuses_a_quantized_folder(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the test extra")
    import transformers

    assert torch is not None
    folder = _save(tmp_path / "int8", map_leaves(_quantize, random_params()))
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "flaxbert"
    with pytest.raises((OSError, ValueError), match="no file named|quantization"):
        transformers.BertForSequenceClassification.from_pretrained(folder)


def test_a_dense_model_drops_the_note_of_the_quantized_one_it_came_from(tmp_path):
    loaded = load_checkpoint(_save(tmp_path / "int8", map_leaves(_quantize, random_params())))
    again = save_checkpoint(tmp_path / "dense", config=loaded.config, task=TASK, params=random_params())
    assert "quantization_config" not in json.loads((again / "config.json").read_text())


def test_sparse_leaves_come_back_with_their_masks_and_stock_sees_zeros(tmp_path):
    params = map_leaves(_prune, random_params())
    folder = _save(tmp_path / "sparse", params)
    loaded = load_checkpoint(folder)
    for name, leaf in flatten_names(params).items():
        found = flatten_names(loaded.params)[name]
        if isinstance(leaf, SparseArray):
            np.testing.assert_array_equal(found.mask, leaf.mask)
            np.testing.assert_array_equal(found.materialize(), leaf.materialize())
        else:
            np.testing.assert_array_equal(found, leaf)
    dense = safetensors.numpy.load_file(folder / "model.safetensors")["bert.pooler.dense.weight"]
    np.testing.assert_array_equal(dense, np.asarray(params["pooler"]["dense"]["kernel"].materialize()).T)
    assert (folder / "flaxbert_leaves.safetensors").stat().st_size < 0.2 * (folder / "model.safetensors").stat().st_size


def test_quantized_and_sparse_together(tmp_path):
    params = map_leaves(lambda name, leaf: (_prune if "layers.0" in name else _quantize)(name, leaf), random_params())
    folder = _save(tmp_path / "mixed", params)
    assert not (folder / "model.safetensors").exists()
    loaded = flatten_names(load_checkpoint(folder).params)
    for name, leaf in flatten_names(params).items():
        assert type(loaded[name]) is type(leaf)
        expected, found = (x.materialize() if hasattr(x, "materialize") else x for x in (leaf, loaded[name]))
        np.testing.assert_array_equal(found, expected)


def test_reordered_labels_of_a_quantized_classifier(tmp_path):
    params = map_leaves(_quantize, random_params())
    folder = _save(tmp_path / "int8", params)
    found = load_checkpoint(folder, labels=("good", "bad", "fair")).params["classifier"]["kernel"]
    expected = params["classifier"]["kernel"].materialize()[:, np.array([2, 0, 1])]
    np.testing.assert_array_equal(found.materialize(), expected)


def test_parameters_of_another_task_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"not those of a bert for 'fill-mask': 'pooler.dense.kernel'|classifier"):
        save_checkpoint(tmp_path / "model", config=CONFIG, task="fill-mask", params=random_params())
    with pytest.raises(WeightsError, match=r"has shape \(12, 3\), but the config needs \(12, 2\)|\(3,\)"):
        save_checkpoint(
            tmp_path / "model", config=CONFIG.replace(num_labels=2, labels=()), task=TASK, params=random_params()
        )
    assert not (tmp_path / "model").exists()


def test_manifest_finds_every_flipped_byte(tmp_path):
    folder = _save(tmp_path / "model", files={"README.md": "# A model\n"})
    assert verify_checkpoint(folder) == []
    names = [path.name for path in folder.iterdir() if path.name != "flaxbert_manifest.json"]
    assert {"README.md", "config.json", "model.safetensors"} <= set(names)
    for name in names:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        original = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        assert verify_checkpoint(folder) == [f"{folder / name} differs from what was written (SHA-256)."]
        (folder / name).write_bytes(original)
    (folder / "README.md").unlink()
    assert verify_checkpoint(folder) == [f"{folder / 'README.md'} is missing."]
    (folder / "flaxbert_manifest.json").unlink()
    with pytest.raises(WeightsError, match="can not be verified"):
        verify_checkpoint(folder)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WeightsError, match="is not empty .*notes.txt"):
        _save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(WeightsError, match="is a file"):
        _save(tmp_path / "file", overwrite=True)


def test_overwriting_replaces_the_model_and_keeps_other_files(tmp_path):
    folder = tmp_path / "model"
    save_checkpoint(
        folder,
        config=CONFIG,
        task="sentence-similarity",
        params=random_params(task="sentence-similarity"),
        pooling=SentencePooling(),
        max_shard_bytes=4000,
    )
    (folder / "notes.txt").write_text("mine")
    (folder / "pytorch_model.bin").write_bytes(b"old")
    _save(folder, overwrite=True)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "flaxbert_manifest.json", "model.safetensors", "notes.txt"]
    assert load_checkpoint(folder).task == TASK
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, existing):
    folder = tmp_path / "deep" / "model"
    before = random_params(seed=1)
    if existing:
        _save(folder, before)

    def fail(file, tensors):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flaxbert.weights.save.write_safetensors", fail)
    with pytest.raises(WeightsError, match=r"The disk is full.*deep/model.*MB are free"):
        _save(folder, overwrite=True)
    assert sorted(path.name for path in folder.parent.iterdir()) == (["model"] if existing else [])
    if existing:
        assert verify_checkpoint(folder) == []
        np.testing.assert_array_equal(
            load_checkpoint(folder).params["pooler"]["dense"]["bias"], before["pooler"]["dense"]["bias"]
        )


def test_no_permission_is_said(tmp_path, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(WeightsError, match=r"can not be saved to .*Permission denied"):
        _save(tmp_path / "model")


def test_a_failing_tokenizer_leaves_nothing(tmp_path):
    class Tokenizer:
        model_max_length = 16

        def save_pretrained(self, folder):
            raise Exception("No space left on device (os error 28)")

    with pytest.raises(WeightsError, match="the tokenizer can not be written"):
        _save(tmp_path / "model", tokenizer=Tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_writer_is_what_the_reference_reads(tmp_path):
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "a": np.arange(3, dtype=np.int8),
        "ä": np.zeros((0, 2), np.float32),
        "m": np.array([True]),
    }
    writers.write_safetensors(tmp_path / "x.safetensors", tensors)
    found = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


def test_types_that_the_format_lacks(tmp_path):
    with pytest.raises(WeightsError, match="'a' has type complex64"):
        writers.write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(2, np.complex64)})
