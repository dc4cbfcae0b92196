"""``flaxbert compare``, and reports of the commands that compress."""

import json

import pytest

from flaxbert.cli.main import main, parse_command
from tests.comparison.conftest import write_examples
from tests.helpers import slow_unless
from tests.weights.tiny import CONFIG, write_tiny

QUICK = ["--rounds", "1", "--batch_sizes", "[1]", "--num_texts", "2", "--num_resamples", "5", "--loading", "false"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return [str(write_tiny(root / name, config=CONFIG.replace(num_hidden_layers=1))) for name in ("one", "two")]


def test_words_before_the_options_are_the_models():
    _, options = parse_command("compare", ["a", "b", "c", "--data", "dev.tsv", "--data.text_column", "x"])
    assert options["models"] == ["a", "b", "c"]
    assert options["examples"] == "dev.tsv"
    assert options["data"].text_column == "x"


def test_a_page_and_its_numbers_are_written(folders, tmp_path, capsys):
    examples = write_examples(tmp_path / "dev.tsv", [("fine", "good"), ("bad film", "bad"), ("films", "fair")])
    output = tmp_path / "out"
    assert main(["compare", *folders, "--data", examples, "--output", str(output), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "Quality on dev.tsv" in shown
    assert "comparison.html" in shown
    document = json.loads((output / "comparison.json").read_text("utf-8"))
    assert [model["name"] for model in document["models"]] == ["one", "two"]
    assert document["models"][1]["quality"]["agreement"] == 1.0
    assert str(tmp_path) not in json.dumps(document)
    assert (output / "comparison.html").read_text("utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["compare"], "models", 2),
        (["compare", "only"], "needs two models at least", 1),
        (["compare", "no-such", "model", "--output", "{taken}"], "exists already", 1),
        (["compare", "a", "b", "--rounds", "0"], "compare.rounds is 0", 1),
        (["compare", "a", "b", "--roundz", "3"], "'rounds'", 2),
        (["quantize", "no-such", "{new}", "--data", "dev.tsv"], "--report FOLDER", 1),
        (["quantize", "no-such", "{new}", "--report", "{taken}"], "exists already", 1),
        (["prune", "no-such", "{new}", "--report", "{new}"], "the folder of the model itself", 1),
    ],
)
def test_wrong_words_end_before_any_work(arguments, message, code, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    places = {"taken": tmp_path / "taken", "new": tmp_path / "new"}
    assert main([word.format(**places) for word in arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "command",
    slow_unless(["quantize"].__eq__, [["quantize"], ["prune", "--pattern", "2:4"]]),
    ids=lambda command: command[0],
)
def test_a_report_follows_at_once(command, folders, tmp_path, capsys, monkeypatch):
    from flaxbert.comparison import compare, settings

    calls = []

    def compare_models(sources, chosen, data, task, *, command):
        calls.append((sources, chosen.examples, data.text_column))
        quick = settings.ComparisonSettings(rounds=1, batch_sizes=(1,), num_texts=2, loading=False)
        return original(sources, quick, data, command=command)

    original = compare.compare_models
    monkeypatch.setattr(compare, "compare_models", compare_models)
    words = [command[0], folders[0], str(tmp_path / "new"), *command[1:], "--report", str(tmp_path / "report")]
    assert main([*words, "--data", "dev.tsv", "--data.text_column", "words"]) == 0
    assert calls == [([folders[0], str(tmp_path / "new")], "dev.tsv", "words")]
    document = json.loads((tmp_path / "report" / "comparison.json").read_text("utf-8"))
    assert document["models"][1]["lineage"]["base_model"] == "one"
    assert "Distance from the reference" in capsys.readouterr().out


def test_a_report_that_fails_says_that_the_model_is_there(folders, tmp_path, capsys):
    words = ["quantize", folders[0], str(tmp_path / "new"), "--report", str(tmp_path / "report")]
    assert main([*words, "--data", str(tmp_path / "none.tsv")]) == 1
    assert f"The model is saved to {tmp_path / 'new'}, but could not be compared" in capsys.readouterr().err
    assert (tmp_path / "new" / "config.json").is_file()
    assert not (tmp_path / "report").exists()
