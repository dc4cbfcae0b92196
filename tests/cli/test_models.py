"""``flaxbert models`` from the command line."""

import json

import pytest

from flaxbert.cli.main import main
from flaxbert.model import load
from flaxbert.registry import Registry
from tests.weights.tiny import CONFIG, write_tiny

PHRASE = '["a fine film"]'


@pytest.fixture
def folders(tmp_path):
    return [
        str(
            load(write_tiny(tmp_path / f"drawn{n}", config=CONFIG.replace(initializer_range=0.1 + n))).save(
                tmp_path / f"model{n}"
            )
        )
        for n in range(2)
    ]


def test_a_model_goes_into_use_and_back(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FLAXBERT_REGISTRY", str(tmp_path / "registry"))

    def run(*words, code=0):
        assert main(["models", *words]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    assert "No models in" in run("list")
    assert "Added films:1, champion" in run(
        "add", "films", folders[0], "--metrics", "{accuracy: 0.9}", "--alias", "[champion]"
    )
    assert "Added films:2:" in run("add", "films", folders[1], "--metrics", "{accuracy: 0.8}", "--note", "narrower")
    refused = run("promote", "films:2", "--metric", "accuracy", "--max_loss", "0", code=1)
    assert "may not become champion: its accuracy is 0.8" in refused
    assert "name it with --metric" in run("promote", "films:2", "--max_loss", "0", code=1)
    assert "films@champion is version 2 (was 1)." in run("promote", "films:2", "--force", "on purpose")
    assert "films@champion is version 1 (was 2)." in run("rollback", "films")
    assert "films@canary is version 2." in run("alias", "films:2", "canary")
    listed = json.loads(run("list", "--name", "films", "--json_output", "true"))[0]
    assert listed["aliases"] == {"champion": 1, "canary": 2}
    assert [version["metrics"]["accuracy"] for version in listed["versions"]] == [0.9, 0.8]
    assert "champion 1, canary 2" in run("list")
    assert "canary" in run("list", "--name", "films")
    shown = run("show", "films@canary", "--history", "true")
    assert "narrower" in shown
    assert "forced on purpose" in shown
    assert "-0.1" in run("diff", "films:1", "films:2")
    assert json.loads(run("diff", "films:1", "films:2", "--json_output", "true"))["metrics"] == {"accuracy": [0.9, 0.8]}
    assert "Removed films@canary." in run("alias", "films", "canary", "--remove", "true")
    assert "films:2 is as it was added." in run("verify", "films")
    record = listed["versions"][1]
    (tmp_path / "registry" / "films" / "versions" / record["folder"] / "config.json").write_text("{}")
    assert main(["models", "verify", "films"]) == 1
    assert "films:2 can not be trusted: config.json" in capsys.readouterr().out
    assert "Deleted films:2." in run("delete", "films:2")
    assert "no model 'film'" in run("show", "film", code=1)


def test_other_commands_take_versions_in_the_place_of_folders(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FLAXBERT_REGISTRY", str(tmp_path / "registry"))
    assert main(["models", "add", "films", folders[0], "--alias", "[champion]"]) == 0
    capsys.readouterr()
    assert main(["predict", "registry:films@champion", "--text", PHRASE]) == 0
    through = capsys.readouterr().out
    assert main(["predict", folders[0], "--text", PHRASE]) == 0
    assert through == capsys.readouterr().out
    assert main(["predict", "registry:films@canary", "--text", PHRASE]) == 1
    assert "no alias 'canary'" in capsys.readouterr().err


def test_quantizing_and_pruning_add_what_they_make(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FLAXBERT_REGISTRY", str(tmp_path / "registry"))
    assert main(["models", "add", "films", folders[0], "--alias", "[champion]"]) == 0
    words = ["registry:films@champion", str(tmp_path / "small"), "--register", "films"]
    assert main(["quantize", *words]) == 0
    assert "It is films:2 in" in capsys.readouterr().out
    words = [folders[1], str(tmp_path / "pruned"), "--rate", "0.5", "--register", "films"]
    assert main(["prune", *words]) == 0
    registry = Registry()
    assert (registry.find("films:2").parent, registry.find("films:2").note) == ("films:1", "quantized")
    assert (registry.find("films:3").parent, registry.find("films:3").note) == ("model1", "pruned")
    assert registry.verify("films") == {1: [], 2: [], 3: []}
    assert main(["quantize", folders[0], str(tmp_path / "no"), "--register", "../films"]) == 1
    assert not (tmp_path / "no").exists()
    monkeypatch.delenv("FLAXBERT_REGISTRY")
    assert main(["prune", folders[0], str(tmp_path / "no"), "--rate", "0.5", "--register", "films"]) == 1
    assert "No registry is named" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
