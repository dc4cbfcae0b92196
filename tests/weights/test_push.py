"""Uploading a folder, with a stand-in for the hub's client that checks what it is given."""

import importlib
import types

import pytest
from huggingface_hub import errors

from flaxbert.cli.main import main
from flaxbert.errors import ConfigError, WeightsError
from flaxbert.weights.push import plan_upload, upload
from tests.weights.tiny import change_config, write_tiny


class Hub:
    """Remembers calls; refuses where told to."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def create_repo(self, repository, *, private, exist_ok):
        self.calls.append(("repo", repository, private, exist_ok))
        if self.error:
            raise self.error

    def create_branch(self, repository, *, branch, exist_ok):
        self.calls.append(("branch", branch, exist_ok))

    def create_commit(self, repository, operations, *, commit_message, revision):
        self.calls.append(("commit", [operation.path_in_repo for operation in operations], commit_message, revision))
        return types.SimpleNamespace(commit_url="https://hub/commit/1")


def test_a_folder_goes_up_in_one_commit_with_a_card(tmp_path):
    folder = write_tiny(tmp_path / "model")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "large").write_text("x")
    (folder / ".model.1.partial").write_text("x")
    plan, hub = plan_upload(folder, "me/tiny", revision="v2", private=True), Hub()
    assert upload(plan, hub) == "https://hub/commit/1"
    assert hub.calls[:2] == [("repo", "me/tiny", True, True), ("branch", "v2", True)]
    kind, names, message, revision = hub.calls[2]
    assert (kind, message, revision) == ("commit", "Upload model with flaxbert", "v2")
    assert set(names) == {
        "config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "flaxbert_manifest.json", "README.md"
    }  # fmt: skip
    assert "pipeline_tag: text-classification" in plan.card


def test_a_card_that_is_there_stays(tmp_path):
    folder = write_tiny(tmp_path / "model")
    (folder / "README.md").write_text("# Mine")
    plan = plan_upload(folder, "me/tiny")
    assert plan.card == ""
    assert "README.md" in plan.files


def test_a_dry_run_contacts_nobody(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flaxbert.weights.push.upload", lambda plan: pytest.fail("contacted the hub"))
    folder = write_tiny(tmp_path / "model")
    assert main(["push", str(folder), "me/tiny", "--dry_run", "true"]) == 0
    out = capsys.readouterr().out
    assert "model.safetensors" in out
    assert "Nothing was uploaded" in out


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "me/ti ny", "../x", ""])
def test_a_bad_id_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="no id on the hub"):
        plan_upload(write_tiny(tmp_path / "model"), name)


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"no config\.json"):
        plan_upload(tmp_path / "empty", "me/tiny")
    folder = write_tiny(tmp_path / "model")
    change_config(folder, model_type="gpt2")
    with pytest.raises(WeightsError, match="'gpt2'"):
        plan_upload(folder, "me/tiny")


def test_what_the_hub_says_is_passed_on(tmp_path):
    plan = plan_upload(write_tiny(tmp_path / "model"), "me/tiny")
    client = importlib.import_module(errors.Response.__module__.split(".")[0])  # whichever the hub's client uses
    response = client.Response(403, request=client.Request("POST", "https://hub.test"))
    with pytest.raises(WeightsError, match="hf auth login"):
        upload(plan, Hub(errors.HfHubHTTPError("forbidden", response=response)))
    with pytest.raises(WeightsError, match="can not be reached"):
        upload(plan, Hub(ConnectionError("no route")))
