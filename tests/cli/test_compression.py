"""``flaxbert quantize``, and ``flaxbert prune`` of weights: from folder to folder, with a report; errors before any work."""

import json

import numpy as np
import pytest

from flaxbert.cli.compression import REPORT_FILE, check_output
from flaxbert.cli.main import main
from flaxbert.cli.quantize import quantize_model
from flaxbert.compression.pruning import parse_weights, prune_model
from flaxbert.config import OneShotConfig, QuantizeConfig
from flaxbert.core.arrays import GroupedArray, QuantizedArray, SparseArray
from flaxbert.core.trees import flatten_names
from flaxbert.errors import ConfigError, FlaxbertError, RuleError, ShapeError
from flaxbert.model import load
from flaxbert.transforms import BlockSparsity, GroupSparsity, MagnitudeSparsity
from tests.weights.tiny import write_tiny

KERNEL = "encoder.layers.0.feed_forward.up.kernel"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("model") / "tiny"))


def leaves(folder):
    return flatten_names(load(folder).params)


def test_quantize_writes_a_model_that_loads_with_codes_and_its_report(model, tmp_path, capsys):
    output = tmp_path / "int8"
    assert main(["quantize", model, str(output)]) == 0
    text = capsys.readouterr().out
    assert KERNEL in text
    assert str(output) in text
    report = json.loads((output / REPORT_FILE).read_text())
    assert report["transform"] == "quantize"
    assert report["bytes_after"] < report["bytes_before"]
    before, after = leaves(model), leaves(output)
    assert isinstance(after[KERNEL], QuantizedArray)
    assert not isinstance(after["classifier.kernel"], QuantizedArray)
    largest = np.abs(np.asarray(before[KERNEL])).max()
    assert np.abs(np.asarray(after[KERNEL].materialize()) - np.asarray(before[KERNEL])).max() <= largest / 254 * 1.001


def test_four_bits_come_back_from_the_folder(model, tmp_path, capsys):
    output = tmp_path / "int4"
    assert main(["quantize", model, str(output), "--bits", "4", "--group_size", "4"]) == 0
    assert "quantized" in capsys.readouterr().out
    before, after = leaves(model)[KERNEL], leaves(output)[KERNEL]
    assert isinstance(after, GroupedArray)
    assert after.group_size == 4
    assert after.packed.nbytes * 8 == before.nbytes
    config = json.loads((output / "config.json").read_text())
    assert config["quantization_config"]["weights"] == ["int4"]
    texts = ["the film was fine", "a film"]
    assert len(load(output).predict(texts)) == len(load(model).predict(texts)) == 2
    assert main(["quantize", model, str(tmp_path / "b"), "--bits", "4", "--group_size", "36"]) == 1
    assert "choose group_size" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_pruning_writes_a_model_that_loads_with_masks_and_can_then_be_quantized(model, tmp_path, capsys):
    sparse, both = tmp_path / "sparse", tmp_path / "both"
    assert main(["prune", model, str(sparse), "--pattern", "1:4"]) == 0
    assert "25.0%" in capsys.readouterr().out
    leaf = leaves(sparse)[KERNEL]
    assert isinstance(leaf, SparseArray)
    assert float(np.mean(leaf.mask)) == 0.25
    report = quantize_model(str(sparse), str(both))
    assert report.notes
    codes = leaves(both)[KERNEL].codes
    assert (np.asarray(codes)[~np.asarray(leaf.mask)] == 0).all()


def test_keep_leaves_the_named_leaves_alone_and_must_match(model, tmp_path):
    pruned, report = prune_model(load(model), OneShotConfig(rate=0.5, keep=(r"encoder\.layers\.0\..*",)))
    assert all(leaf.name.startswith("encoder.layers.1.") for leaf in report.changed)
    assert not isinstance(flatten_names(pruned.params)[KERNEL], SparseArray)
    with pytest.raises(RuleError, match="'encoder.layer.0.x' matches no leaf"):
        quantize_model(model, str(tmp_path / "b"), QuantizeConfig(keep=("encoder.layer.0.x",)))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("command", ["quantize", "prune"])
def test_an_output_that_exists_is_refused_before_the_model_is_looked_for(command, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name in ("file", "folder"):
        assert main([command, "no-such-model", str(tmp_path / name)]) == 1
        assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "folder" / "mine").read_text() == "mine"
    assert check_output(str(tmp_path / "new")) == tmp_path / "new"


@pytest.mark.parametrize("command", ["quantize", "prune"])
def test_a_folder_that_is_no_model_is_one_clear_error_and_nothing_is_written(command, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([command, str(tmp_path / "empty"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("flaxbert: error:")
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_quantized_model_is_neither_quantized_again_nor_pruned(model, tmp_path, capsys):
    quantize_model(model, str(tmp_path / "int8"))
    with pytest.raises(FlaxbertError, match="quantized"):
        quantize_model(str(tmp_path / "int8"), str(tmp_path / "again"))
    for option in (["--pattern", "2:4"], ["--heads", "0.5"], ["--layers", "first:1"]):
        assert main(["prune", str(tmp_path / "int8"), str(tmp_path / "again"), *option]) == 1
        assert "prune before you quantize" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_pattern_that_does_not_divide_names_the_leaf(model):
    with pytest.raises(ShapeError, match=r"query\.kernel.*12 entries.*group size 5"):
        prune_model(load(model), OneShotConfig(pattern="2:5"))
    with pytest.raises(ShapeError, match=r"query\.kernel.*blocks of 5x4"):
        prune_model(load(model), OneShotConfig(rate=0.5, block="5x4"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"pattern": "1:8"}, GroupSparsity(1, 8)),
        ({"rate": 0.3}, MagnitudeSparsity(0.3)),
        ({"rate": 0.3, "scope": "global"}, MagnitudeSparsity(0.3, "global")),
        ({"rate": 0.3, "importance": "random", "seed": 7}, MagnitudeSparsity(0.3, "leaf", "random", 7)),
        ({"rate": 0.3, "block": "8x2"}, BlockSparsity(0.3, 8, 2)),
    ],
)
def test_options_give_a_specification(options, expected):
    assert parse_weights(OneShotConfig(**options)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "2:4", "rate": 0.5}, "exclude each other"),
        ({"pattern": "2/4"}, "'2/4', but must be N:M"),
        ({"pattern": "4:4"}, "4:4 is no N:M"),
        ({"rate": 1.0}, "rate is 1.0"),
        ({"scope": "global"}, "needs --rate"),
        ({"block": "4x4"}, "needs --rate"),
        ({"rate": 0.5, "block": "4"}, "HEIGHTxWIDTH"),
        ({"rate": 0.5, "block": "1x1"}, "1x1 is no block"),
        ({"heads": 1.0}, "--heads is 1.0.*something must stay"),
        ({"neurons": -0.1}, "--neurons is -0.1"),
        ({"importance": "gradient", "rate": 0.5}, "ranks heads and neurons"),
        ({"min_count": 0}, "min_count"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        parse_weights(OneShotConfig(**options))


@pytest.mark.parametrize("command", ["quantize", "prune"])
def test_help_documents_every_option(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    options = ("model", "output", "--keep", "--task") + (
        ("--pattern", "--rate", "--scope") if command == "prune" else ()
    )
    assert all(option in text for option in options)
