"""Fine-tuning that quantizes: steps learn, runs go on bit by bit, and what comes out are codes that answer as the trained model did."""

import numpy as np
import pytest

from flaxbert.config import (
    DataConfig,
    FreezeRule,
    ModelSource,
    OutputConfig,
    PruneConfig,
    RunConfig,
    TrainConfig,
    TrainQuantizeConfig,
)
from flaxbert.core.arrays import GroupedArray, QuantizedArray
from flaxbert.core.low_bit_arrays import PackedArray, StaticQuantizedArray
from flaxbert.core.trees import flatten_names, flatten_parts, map_leaves
from flaxbert.errors import ConfigError, RuleError, ShapeError
from flaxbert.model import load
from flaxbert.train.recipes.finetune import finetune
from flaxbert.train.recipes.quantized import _first_step, settle_steps, with_learned_steps
from flaxbert.transforms import sparsify
from tests.helpers import slow_unless
from tests.train.recipes.stopped_runs import TEXTS, StopAt, write_examples
from tests.weights.tiny import CONFIG, write_tiny

UP = "encoder.layers.0.feed_forward.up.kernel"

SAME = 2e-2
"""Relative to the largest logit: inputs of int8 that lie on the edge of two codes fall to either side."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = CONFIG.replace(hidden_size=16, num_attention_heads=2, intermediate_size=32)
    return write_tiny(tmp_path_factory.mktemp("model") / "start", config=config)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("data"))


def rounding_error(weights, step, low, high):
    return np.square(np.clip(np.rint(weights / step), low, high) * step - weights).sum(axis=-2)


@pytest.mark.parametrize(("low", "high"), [(-127, 127), (-8, 7), (-4, 3), (-2, 1)])
def test_first_steps_are_nearer_to_trained_weights_than_those_of_the_paper_and_of_the_range(low, high):
    scales = np.logspace(-3, 1, 6, dtype=np.float32)
    weights = scales * np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    weights[:, 2] = 0.0
    step = _first_step(weights, -2, 64, low, high)
    assert step.shape == (1, 6)
    assert step.dtype == np.float32
    assert (step > 0).all()
    found = rounding_error(weights, step, low, high)
    for other in (2 * np.abs(weights).mean(axis=0) / np.sqrt(high), np.abs(weights).max(axis=0) / high):
        assert (found <= rounding_error(weights, np.maximum(other, 1e-8), low, high) * 1.001).all()
    grouped = _first_step(weights, -2, 16, low, high)
    assert grouped.shape == (4, 6)
    np.testing.assert_array_equal(grouped[1], _first_step(weights[16:32], -2, 16, low, high)[0])


def build(model, data, folder, quantize, prune=PruneConfig(), scan_layers=False, **train):
    settings = {
        "batch_size": 16,
        "num_steps": 8,
        "learning_rate": 3e-3,
        "log_every": 1,
        "checkpoint_every": 2,
        "load_best_at_end": False,
        **train,
    }
    return RunConfig(
        model=ModelSource(path=str(model), dropout_rate=0.1, scan_layers=scan_layers),
        data=DataConfig(train=str(data), max_length=8, length_buckets=(8,), validation_rate=0.25),
        train=TrainConfig(**settings),
        output=OutputConfig(folder=str(folder), tensorboard=False, plots=False, progress="off"),
        prune=prune,
        quantize=quantize,
    )


WAYS = {
    "int8": (TrainQuantizeConfig(8), StaticQuantizedArray, QuantizedArray),
    "int8 dynamic": (TrainQuantizeConfig(8, activations="dynamic"), QuantizedArray, QuantizedArray),
    "int4": (TrainQuantizeConfig(4, 16), GroupedArray, GroupedArray),
    "3 bits": (TrainQuantizeConfig(3, 16), PackedArray, PackedArray),
    "2 bits": (TrainQuantizeConfig(2, 16), PackedArray, PackedArray),
}


@pytest.mark.parametrize("name", slow_unless({"int8", "3 bits"}.__contains__, WAYS))
def test_codes_answer_as_the_model_in_training_does(name, model):
    quantize, kernel, table = WAYS[name]
    loaded = load(model)
    from flaxbert.data.tokenization import tokenize

    examples = tokenize(loaded.tokenizer, list(TEXTS), max_length=8)
    learned = with_learned_steps(loaded, quantize, examples)
    settled = map_leaves(lambda _, leaf: settle_steps(leaf) if hasattr(leaf, "levels") else leaf, learned)
    leaves = flatten_names(settled)
    assert isinstance(leaves[UP], kernel)
    assert isinstance(leaves["embeddings.word.embedding"], table)
    for leaf_name, leaf in leaves.items():
        if hasattr(leaf, "validate"):
            leaf.validate(leaf_name)
    batch = {"input_ids": np.random.default_rng(0).integers(5, 13, (32, 8))}
    before = np.asarray(loaded.apply(map_leaves(lambda _, leaf: leaf, learned), batch).logits)
    after = np.asarray(loaded.apply(settled, batch).logits)
    if name != "int8 dynamic":
        assert np.abs(after - before).max() < SAME * np.abs(before).max()
        return
    # Its inputs are rounded only now: single ones of random weights lie on the edges of many codes, so that all count together.
    size = lambda array: np.sqrt(np.square(array).mean())
    assert size(after - before) < 0.1 * size(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "2 bits"])
def test_a_run_ends_with_codes_and_its_folder_holds_them(name, model, data, tmp_path):
    quantize, kernel, table = WAYS[name]
    lines = []
    result = finetune(build(model, data, tmp_path / "run", quantize), say=lines.append)
    assert result.step == 8
    assert any(line.startswith("Quantized: 14 matrices") for line in lines)
    leaves = flatten_names(load(tmp_path / "run" / "model").params)
    assert isinstance(leaves[UP], kernel)
    assert isinstance(leaves["embeddings.word.embedding"], table)
    start = with_learned_steps(load(model), quantize, result_examples(model))
    first = np.asarray(flatten_parts(start)[f"{UP}@step"])
    scale = leaves[UP].scale / leaves[UP].input_scale[:1] if name == "int8" else leaves[UP].scale
    assert np.abs(np.asarray(scale, np.float32) / first - 1).max() > 1e-3  # steps have learned


def result_examples(model):
    from flaxbert.data.tokenization import tokenize

    return tokenize(load(model).tokenizer, list(TEXTS), max_length=8)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_run_that_was_stopped_goes_on_bit_by_bit(scan_layers, model, data, tmp_path):
    whole = finetune(
        build(model, data, tmp_path / "whole", WAYS["int8"][0], scan_layers=scan_layers), say=lambda _: None
    )
    parts = build(model, data, tmp_path / "parts", WAYS["int8"][0], scan_layers=scan_layers)
    assert finetune(parts, say=lambda _: None, extra_callbacks=[StopAt(3)]).reason == "preempted"
    resumed = finetune(parts, say=lambda _: None)
    for name, array in flatten_parts(whole.model.params).items():
        assert np.array_equal(array, flatten_parts(resumed.model.params)[name]), name


def test_what_can_not_be_rounded_is_refused(model, data, tmp_path):
    loaded, examples = load(model), result_examples(model)
    sparse = loaded.replace(params=sparsify(loaded.params)[0])
    frozen = (FreezeRule(r"encoder\..*"),)
    for bad, quantize, freeze, error, message in (
        (sparse, TrainQuantizeConfig(8), (), RuleError, "is sparse, but training that rounds starts from float"),
        (loaded, TrainQuantizeConfig(8), frozen, ConfigError, "train.freeze keeps it"),
        (loaded, TrainQuantizeConfig(4, 24), (), ShapeError, "groups of 24 do not divide"),
        (loaded, TrainQuantizeConfig(4, 16, keep=("encoder.layer.0",)), (), RuleError, "matches no leaf"),
    ):
        with pytest.raises(error, match=message):
            with_learned_steps(bad, quantize, examples, freeze)
    with pytest.raises(ConfigError, match="are both set"):
        finetune(
            build(model, data, tmp_path / "both", TrainQuantizeConfig(8), PruneConfig("magnitude")), say=lambda _: None
        )
    with pytest.raises(ConfigError, match="choose 8, 4, 3 or 2"):
        TrainQuantizeConfig(5)
