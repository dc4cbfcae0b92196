"""The command line: help, errors in one line, exit codes, and whole commands on a tiny model."""

import json

import pytest

from flaxbert.cli.main import COMMANDS, main
from tests.weights.tiny import write_tiny


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_documents_its_options(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: flaxbert {name}" in shown
    assert "default" in shown


def test_usage_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert "flaxbert 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["finetun"], "Did you mean 'finetune'"),
        (["checkpoints"], "checkpoints list"),
        (["finetune", "--train.learnin_rate", "3"], "'train.learning_rate'"),
        (["finetune", "--train.warmup_rate", "3"], "train.warmup_rate is 3.0"),
        (["finetune", "--model.precision", "float8"], "float8"),
    ],
)
def test_wrong_usage_is_one_clear_line(arguments, expected, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.startswith("flaxbert: error:")
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["--profile", "100:105"], ["--profile=100:105"], ["--train.profile", "100:105"]])
def test_the_window_of_a_profile_has_a_short_name(words, capsys):
    for command in ("pretrain", "finetune"):
        assert main([command, *words, "--print-config"]) == 0
        assert "profile: 100:105" in capsys.readouterr().out
    assert main(["evaluate", *words]) == 2


def test_a_typo_in_a_config_file_names_the_nearest_key(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  learnin_rate: 3\n", "utf-8")
    assert main(["finetune", "--config", str(file)]) == 2
    assert "learning_rate" in capsys.readouterr().err


def test_print_config_is_a_file_that_the_command_reads(tmp_path, capsys):
    assert main(["finetune", "--train.seed", "7", "--print-config"]) == 0
    text = capsys.readouterr().out
    assert "seed: 7" in text
    file = tmp_path / "run.yaml"
    file.write_text(text, "utf-8")
    assert main(["finetune", "--config", str(file), "--print-config"]) == 0
    assert capsys.readouterr().out == text


def test_an_expected_error_ends_with_exit_code_1(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(tmp_path / "empty"), "--text", '["fine"]']) == 1
    assert "flaxbert: error:" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "empty")]) == 1
    assert "--input" in capsys.readouterr().err


def test_predict_and_evaluate_run_on_a_tiny_model(tmp_path, capsys):
    folder = write_tiny(tmp_path / "model")
    texts = tmp_path / "texts.txt"
    texts.write_text("a fine film\nthe film was bad\n", "utf-8")
    output = tmp_path / "labels.jsonl"
    assert main(["predict", str(folder), "--input", str(texts), "--format", "jsonl", "--output", str(output)]) == 0
    lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [line["text"] for line in lines] == ["a fine film", "the film was bad"]
    assert all(set(line["scores"]) == {"bad", "fair", "good"} for line in lines)
    table = tmp_path / "dev.csv"
    rows = [f"{line['text']},{line['label']}" for line in lines]
    table.write_text("text,label\n" + "\n".join(rows) + "\n", "utf-8")
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--examples", str(table), "--output", str(tmp_path / "score.json")]) == 0
    assert json.loads((tmp_path / "score.json").read_text())["metrics"]["accuracy"] == 1.0
    table.write_text("text,label\na fine film,goood\n", "utf-8")
    assert main(["evaluate", str(folder), "--examples", str(table)]) == 1
    assert "'good'" in capsys.readouterr().err


def test_bytes_that_are_no_text_are_named_by_line(tmp_path, capsys):
    folder = write_tiny(tmp_path / "model")
    texts = tmp_path / "texts.txt"
    texts.write_bytes(b"fine\n\xff\xfe\n")
    assert main(["predict", str(folder), "--input", str(texts), "--output", str(tmp_path / "out")]) == 1
    assert "line 2" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "texts.txt"]


def test_doctor_finds_this_machine_well(capsys):
    assert main(["doctor", "--quick", "true"]) == 0
    assert "jaxlib" in capsys.readouterr().out
