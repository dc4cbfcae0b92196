"""``flaxbert prune`` as a whole: several kinds in one command, and each error before anything is written."""

import json

import numpy as np
import pytest

from flaxbert.cli.compression import REPORT_FILE
from flaxbert.cli.main import main
from flaxbert.compression.pruning import Measured, prune_model
from flaxbert.config import OneShotConfig
from flaxbert.core.arrays import SparseArray
from flaxbert.core.trees import flatten_names
from flaxbert.errors import ConfigError, DataError, RuleError
from flaxbert.model import load
from tests.weights.tiny import CONFIG, write_tiny

TEXT = "a fine film"

EXACT = 1e-5
"""Absolute, for logits of size up to 10: the same float32 sums with fewer zeros in them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny", config=CONFIG.replace(num_hidden_layers=3))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "examples.jsonl"
    rows = [("a fine film", "good"), ("the film was bad", "bad"), ("films", "fair")] * 2
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return str(file)


def test_all_kinds_in_one_command(folder, tmp_path, capsys):
    texts, output = tmp_path / "texts.txt", tmp_path / "pruned"
    texts.write_text("a fine film\nthe films\n")
    words = [
        "--vocabulary", str(texts), "--layers", "0,2", "--heads", "0.34", "--neurons_kept", "[8,12]", "--pattern", "2:4", "--keep", "encoder.layers.0.*",
    ]  # fmt: skip
    assert main(["prune", str(folder), str(output), *words]) == 0
    shown = capsys.readouterr().out
    for note in (
        "2 of 3 layers are left: 0, 2.",
        "4 of 6 heads are left.",
        "20 of 40 neurons are left.",
        "16 leaves are gone.",
    ):
        assert note in shown
    pruned = load(output)
    config = pruned.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.head_dim) == (2, 2, 4)
    assert config.layer_intermediate == (8, 12)
    assert config.vocab_size == len(pruned.tokenizer.get_vocab()) < CONFIG.vocab_size
    leaves = flatten_names(pruned.params)
    assert isinstance(leaves["encoder.layers.1.feed_forward.up.kernel"], SparseArray)
    assert not isinstance(leaves["encoder.layers.0.feed_forward.up.kernel"], SparseArray)
    assert pruned.tokenizer.tokenize(TEXT) == load(folder).tokenizer.tokenize(TEXT)
    assert pruned.predict([TEXT])[0].label in config.label_names
    report = json.loads((output / REPORT_FILE).read_text())
    assert report["transform"] == "prune"
    assert {leaf["form"] for leaf in report["leaves"]} == {"kept", "removed", "smaller, dense", "smaller, sparse"}


def test_labelled_examples_decide_what_goes(folder, examples):
    model = load(folder)
    kept = {}
    for importance in ("gradient", "magnitude"):
        options = OneShotConfig(neurons=0.5, importance=importance, shrink=False)
        pruned, _ = prune_model(model, options, Measured(examples))
        leaf = flatten_names(pruned.params)["encoder.layers.0.feed_forward.down.kernel"]
        kept[importance] = np.asarray(leaf.mask).all(axis=1)
        assert kept[importance].sum() == 10
    assert not np.array_equal(kept["gradient"], kept["magnitude"])


def test_without_shrinking_shapes_stay_and_shrinking_later_gives_the_same(folder, tmp_path):
    model = load(folder)
    options = {"heads": 0.34, "neurons": 0.5, "scope": "global"}
    small, _ = prune_model(model, OneShotConfig(**options))
    masked, report = prune_model(model, OneShotConfig(**options, shrink=False))
    assert masked.config == model.config
    assert {leaf.form for leaf in report.changed} == {"sparse", "dense"}
    masked.save(tmp_path / "masked")
    later, _ = prune_model(load(tmp_path / "masked"), OneShotConfig())
    assert later.config == small.config
    wanted, *others = (found.predict_logits([TEXT]) for found in (masked, small, later))
    for found in others:
        np.testing.assert_allclose(found, wanted, atol=EXACT)
    assert np.abs(wanted - model.predict_logits([TEXT])).max() > 0.1


def test_random_choice_is_that_of_its_seed(folder):
    model = load(folder)
    kernels = [
        flatten_names(prune_model(model, OneShotConfig(rate=0.5, importance="random", seed=seed))[0].params)[
            "encoder.layers.0.feed_forward.up.kernel"
        ]
        for seed in (0, 0, 1)
    ]
    masks = [np.asarray(kernel.mask) for kernel in kernels]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_weights_go_by_what_they_give_on_texts(folder, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("a fine film\nthe film was bad\nfilms\n" * 8)
    words = ["--pattern", "2:4", "--importance", "second_moment", "--calibration", str(texts)]
    assert main(["prune", str(folder), str(tmp_path / "moment"), *words]) == 0
    assert main(["prune", str(folder), str(tmp_path / "magnitude"), "--pattern", "2:4"]) == 0
    whole = load(folder)
    dense = {name: np.asarray(leaf) for name, leaf in flatten_names(whole.params).items()}
    errors = {}
    for name in ("moment", "magnitude"):
        pruned = load(tmp_path / name)
        leaf = flatten_names(pruned.params)["encoder.layers.0.feed_forward.up.kernel"]
        assert isinstance(leaf, SparseArray)
        assert np.asarray(leaf.mask).mean() == 0.5
        kept = np.asarray(leaf.values)[np.asarray(leaf.mask)]
        same = np.array_equal(kept, dense["encoder.layers.0.feed_forward.up.kernel"][np.asarray(leaf.mask)])
        assert same == (name == "magnitude")
        errors[name] = float(np.square(np.asarray(pruned.predict_logits([TEXT])) - whole.predict_logits([TEXT])).sum())
    assert errors["moment"] < errors["magnitude"]
    assert main(["prune", str(folder), str(tmp_path / "no"), *words[:4]]) != 0
    assert "belong together" in capsys.readouterr().err


def test_nothing_to_prune_is_an_error(folder, tmp_path, capsys):
    assert main(["prune", str(folder), str(tmp_path / "out")]) == 1
    assert "Nothing was pruned. Name what goes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads_kept": 4}, ConfigError, "4 heads can not be kept of encoder.layers.0, which has 3"),
        ({"layers": "0,3"}, ConfigError, "rising numbers from 0 to 2"),
        ({"heads": 0.5, "importance": "gradient"}, ConfigError, "No examples are named"),
        ({"vocabulary": "no-such-file.txt"}, DataError, "no-such-file"),
        ({"rate": 0.5, "keep": "encoder.layer.0.*"}, RuleError, "matches no leaf"),
        ({"heads": 0.5, "scope": "global", "even": True}, ConfigError, "--even asks for the same number"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(folder, options, error, message):
    with pytest.raises(error, match=message):
        prune_model(load(folder), OneShotConfig(**options))


def test_examples_with_other_labels_and_empty_ones_are_refused(folder, tmp_path):
    other, empty = tmp_path / "other.jsonl", tmp_path / "empty.jsonl"
    other.write_text(json.dumps({"text": "a film", "label": "awful"}) + "\n")
    empty.write_text("")
    options = OneShotConfig(heads=0.5, importance="gradient")
    with pytest.raises(DataError, match="awful"):
        prune_model(load(folder), options, Measured(str(other)))
    with pytest.raises(DataError, match="empty"):
        prune_model(load(folder), options, Measured(str(empty)))
    texts = tmp_path / "empty.txt"
    texts.write_text("\n \n")
    with pytest.raises(DataError, match="no text"):
        prune_model(load(folder), OneShotConfig(vocabulary=str(texts)))


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("albert", {"layers": "first:1"}, "layers of a albert can not be pruned: its layers share their weights"),
        ("convbert", {"heads": 0.5}, "convolutions beside its heads"),
    ],
)
def test_families_that_can_not_lose_something_say_why(family, options, reason, tmp_path):
    from flaxbert.model import Model
    from tests.nn.models import small_config, small_params

    config = small_config(family, "token-classification", hidden_size=32, num_attention_heads=4)
    model = Model(config, small_params(config, "token-classification"), "token-classification")
    with pytest.raises(ConfigError, match=reason):
        prune_model(model, OneShotConfig(**options))
