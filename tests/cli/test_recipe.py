"""``flaxbert recipe``: steps follow each other, are checked before the first runs, and go on where they stopped."""

import json
import pathlib

import pytest
import yaml

from flaxbert.cli.main import main
from flaxbert.cli.recipe import STATE_FILE, read_steps
from flaxbert.core.trees import flatten_names
from flaxbert.errors import ConfigError
from flaxbert.model import load
from tests.weights.tiny import write_tiny

STEPS = [{"prune": {"neurons_kept": 16, "layers": "first:1"}}, {"quantize": {"bits": 4, "group_size": 4}}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("model") / "tiny"))


def write(folder: pathlib.Path, model: str, steps) -> list[str]:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"model": model, "output": str(folder / "out"), "steps": steps}), "utf-8")
    return ["recipe", "--config", str(file)]


def test_steps_follow_each_other_and_are_not_run_twice(model, tmp_path, capsys):
    words = write(tmp_path, model, STEPS)
    assert main(words) == 0
    final = tmp_path / "out" / "2-quantize"
    assert f"The model is in {final}." in capsys.readouterr().out
    loaded = load(final)
    assert (loaded.config.num_hidden_layers, loaded.config.intermediate_size) == (1, 16)
    assert flatten_names(loaded.params)["encoder.layers.0.feed_forward.up.kernel"].kind == "grouped"
    report = json.loads((final / "compression_report.json").read_text())
    assert [step["transform"] for step in report["lineage"]["steps"]] == ["prune", "quantize"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.count("done before") == 2


def test_a_recipe_goes_on_with_the_step_that_failed(model, tmp_path, capsys):
    wrong = [STEPS[0], {"quantize": {"keep": ["no.such.leaf"]}}]
    assert main(write(tmp_path, model, wrong)) == 1
    assert "matches no leaf" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / STATE_FILE).read_text())["done"] == 1
    assert main(write(tmp_path, model, STEPS)) == 0
    assert "Step 1 of 2, prune: done before." in capsys.readouterr().out
    changed = [{"prune": {"neurons_kept": 8}}, STEPS[1]]
    assert main(write(tmp_path, model, changed)) == 1
    assert "done steps of another recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "has no steps"),
        ([{"prune": {}, "quantize": {}}], "one command with its options"),
        ([{"prun": {}}], "recipe has the steps"),
        (["quantize", {"prune": {"heads": 0.5}}], "Step 2, prune, comes after step 1, quantize"),
        ([{"finetune": {"quantize": {"bits": 8}}}, "quantize"], "comes after step 1, finetune"),
        ([{"finetune": {"model.path": "x"}}], "sets model.path, which the recipe sets"),
    ],
)
def test_orders_that_make_no_sense_are_refused(steps, message):
    with pytest.raises(ConfigError, match=message):
        read_steps(steps)


def test_a_wrong_option_of_a_late_step_ends_before_any_work(model, tmp_path, capsys):
    assert main(write(tmp_path, model, [STEPS[0], {"quantize": {"bitz": 4}}])) == 2
    assert "bitz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert main(write(tmp_path, model, STEPS)) == 1
    assert "is no recipe's" in capsys.readouterr().err


def test_export_and_comparison_may_follow_codes():
    steps = read_steps(["quantize", {"export": {"format": "onnx"}}, {"compare": {"examples": "dev.tsv"}}])
    root = pathlib.Path("out")
    assert steps[1].words("first", "out/1-quantize", root) == [
        "export",
        "out/1-quantize",
        "out/2-export",
        "--format",
        "onnx",
    ]
    assert steps[2].words("first", "out/1-quantize", root)[:3] == ["compare", "first", "out/1-quantize"]
