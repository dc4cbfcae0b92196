"""From paths and ids to folders, without a network: local caches and answers of a mocked hub."""

import errno
import importlib
import pathlib

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from flaxbert.errors import WeightsError
from flaxbert.weights.hub import ALLOWED_FILES, looks_like_path, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _raise(error):
    def download(*arguments, **options):
        raise error

    return download


def _response(status):
    client = importlib.import_module(errors.Response.__module__.split(".")[0])  # whichever the hub's client uses
    return client.Response(status, request=client.Request("GET", "https://hub.test/api"))


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    assert resolve(tmp_path) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == pathlib.Path("owner/name"), "an existing folder wins over an id"


@pytest.mark.parametrize("text", ["./model", "/models/x", "~/model", "../model", "a/b/c", "a\\b", "runs/best/"])
def test_what_can_only_be_a_path_is_not_asked_for_on_the_hub(text, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _raise(AssertionError("the hub was asked")))
    assert looks_like_path(text)
    with pytest.raises(WeightsError, match="does not exist"):
        resolve(text)


def test_a_missing_folder_lists_its_neighbours(tmp_path):
    (tmp_path / "best").mkdir()
    with pytest.raises(WeightsError, match="holds best"):
        resolve(str(tmp_path / "bset"))


@pytest.mark.parametrize(("text", "message"), [("", "No model is named"), ("my model", "neither a folder nor an id")])
def test_what_is_neither(text, message):
    with pytest.raises(WeightsError, match=message):
        resolve(text)


def test_options_reach_the_hub(monkeypatch, online, tmp_path):
    asked = {}

    def download(model_id, **options):
        asked.update(options, model_id=model_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/name", revision=COMMIT) == tmp_path
    assert asked["model_id"] == "owner/name"
    assert asked["revision"] == COMMIT
    assert asked["local_files_only"] is False
    resolve("owner/name", offline=True)
    assert asked["local_files_only"] is True
    assert asked["revision"] is None


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("a.safetensors", "pytorch_model.bin"), {"a.safetensors"}),
        (("pytorch_model.bin", "flax_model.msgpack", "training_args.bin"), {"pytorch_model.bin"}),
        (("flax_model.msgpack", "tf_model.h5"), {"flax_model.msgpack"}),
        (
            (
                "bert_model.ckpt.index",
                "bert_model.ckpt.data-00000-of-00001",
                "bert_model.ckpt.meta",
                "bert_config.json",
            ),
            {"bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001", "bert_config.json"},
        ),
        (("README.md",), set()),
    ],
)
def test_other_formats_are_fetched_where_there_are_no_safetensors(monkeypatch, online, tmp_path, names, kept):
    from huggingface_hub.utils import filter_repo_objects

    def download(model_id, **options):
        patterns = {key: options[key] for key in ("allow_patterns", "ignore_patterns")}
        for name in filter_repo_objects(names, **patterns):
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/name") == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_only_what_a_model_needs_is_fetched():
    from huggingface_hub.utils import filter_repo_objects

    names = [
        "config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "1_Pooling/config.json",
        "vocab.json", "merges.txt", "spm.model", "spiece.model", "sentencepiece.bpe.model", "bpe.codes",
        "pytorch_model.bin", "onnx/model.onnx", "onnx/model.safetensors", "tf_model.h5", "README.md", "train_script.py",
    ]  # fmt: skip
    from flaxbert.weights.hub import IGNORED_FILES

    kept = list(filter_repo_objects(names, allow_patterns=list(ALLOWED_FILES), ignore_patterns=list(IGNORED_FILES)))
    assert kept == names[:11]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError("404", response=_response(404)), "no model of this id on the hub"),
        (errors.GatedRepoError("403", response=_response(403)), "is gated"),
        (errors.RevisionNotFoundError("404", response=_response(404)), "no revision 'v9'"),
        (errors.LocalEntryNotFoundError("not cached"), "hub can not be reached"),
        (errors.HfHubHTTPError("500", response=_response(500)), "answered with an error"),
        (errors.HTTPError("name resolution failed"), "hub can not be reached.*name resolution failed"),
        (OSError(errno.ENOSPC, "No space left on device"), "can not be stored .*No space left"),
    ],
)
def test_errors_of_the_hub_are_explained(monkeypatch, online, error, message):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _raise(error))
    with pytest.raises(WeightsError, match=message):
        resolve("owner/name", revision="v9")


def test_offline_and_not_cached():
    with pytest.raises(WeightsError, match="not in the hub's cache of this machine"):
        resolve("owner/surely-not-there", offline=True)


def test_no_network(monkeypatch, online, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _raise(errors.HTTPError("timed out")))
    with pytest.raises(WeightsError, match=r"There is no folder 'owner/name', and the hub can not be reached"):
        resolve("owner/name")


def test_cached_snapshot_is_found_offline(tmp_path, monkeypatch):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: real(name, cache_dir=tmp_path, **options)
    )
    assert resolve("owner/name", offline=True) == snapshot
    assert resolve("owner/name", revision=COMMIT, offline=True) == snapshot
    with pytest.raises(WeightsError, match="at revision 'other'.*not in the hub's cache"):
        resolve("owner/name", revision="other", offline=True)
