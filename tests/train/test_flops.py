"""Operations of every family against those that its traced network multiplies, and of batches by hand."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.reductions import NUM_ONES_ROWS
from flaxbert.families import FAMILIES
from flaxbert.families.graph import abstract_params, forward, graph_definition
from flaxbert.families.modernbert_encoder import ModernBertOptions
from flaxbert.families.work import LayerWork, standard_layer
from flaxbert.train.flops import NetworkWork, batch_flops, text_lengths
from tests.helpers import DIFFERENT_FAMILIES, slow_unless
from tests.nn.models import small_config

BASE = ModelConfig()
LARGE = ModelConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
SMALL = ModelConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=11)

TOLERANCE = 0.03
"""Relative: classifiers, poolers and what networks compute beside the plain formula (blocks of distances, biases as products)."""


def multiplications(jaxpr) -> float:
    """Returns the multiplications of all products of a traced function, without those that only add up rows."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape, other = (variable.aval.shape for variable in equation.invars)
            if other == (shape[-1], NUM_ONES_ROWS):
                continue
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        inner = [
            multiplications(getattr(part, "jaxpr", part))
            for value in equation.params.values()
            for part in (value if isinstance(value, tuple | list) else (value,))
            if hasattr(getattr(part, "jaxpr", part), "eqns")
        ]
        total += max(inner, default=0.0) if equation.primitive.name == "cond" else sum(inner)
    return total


def outputs(output):
    return output.last_hidden_state if output.logits is None else output.logits


def traced(config, task, rows, length, slots=0) -> float:
    batch = {name: np.ones((rows, length), np.int32) for name in ("input_ids", "attention_mask")}
    if slots:
        batch["masked_positions"] = np.zeros((rows, slots), np.int32)
    definition = graph_definition(config, task, Execution())
    shapes = abstract_params(config, task)
    return multiplications(jax.make_jaxpr(lambda params: outputs(forward(definition, params, batch)))(shapes).jaxpr)


@pytest.mark.parametrize("family", slow_unless(DIFFERENT_FAMILIES.__contains__, FAMILIES))
def test_every_family_multiplies_what_its_table_says(family):
    changes = {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 192, "num_hidden_layers": 2}
    changes |= {"embedding_size": 64} if family in ("albert", "electra") else {}
    config = small_config(family, "feature-extraction", **changes, max_position_embeddings=100)
    if family == "deberta-v2":  # as many buckets as there are distances: fewer are multiplied more than once
        config = config.replace(options=dataclasses.replace(config.options, position_buckets=48))
    expected = NetworkWork(config, "feature-extraction").forward(np.full(3, 48), 0.0)
    assert traced(config, "feature-extraction", 3, 48) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("family", ["bert", "electra", "modernbert"])
def test_hidden_words_are_counted_where_they_are_predicted(family):
    changes = {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 192, "vocab_size": 500}
    config = small_config(family, "fill-mask", **changes, max_position_embeddings=100)
    expected = NetworkWork(config, "fill-mask").forward(np.full(3, 48), 3.0 * 7)
    assert traced(config, "fill-mask", 3, 48, slots=7) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("config", "length", "giga_flops"),
    [(BASE, 128, 0.545), (BASE, 512, 0.588), (LARGE, 128, 1.879), (LARGE, 256, 1.917), (LARGE, 512, 1.992)],
)
def test_flops_of_bert_with_masked_language_model(config, length, giga_flops):
    work = NetworkWork(config, "fill-mask").training_flops(np.array([length]), 0.15 * length)
    assert round(work / length / 1e9, 3) == giga_flops


def test_products_are_counted_one_by_one():
    length, products = 5, 0
    for _ in range(SMALL.num_hidden_layers):
        products += 4 * length * 8 * 8  # query, key, value, output
        products += 2 * length * length * 8  # scores and weighted sum
        products += 2 * length * 8 * 16  # feed-forward
    lengths = np.array([length])
    assert NetworkWork(SMALL, "token-classification").training_flops(lengths) == 3 * 2 * products
    products -= (length - 1) * (8 * 8 + 2 * 8 * 16)  # output and feed-forward of the last layer, for one token
    work = NetworkWork(SMALL, "sequence-classification", first_token_only=True)
    assert work.training_flops(lengths) == 3 * 2 * products


@pytest.mark.parametrize(("length", "radius"), [(1, 3), (4, 3), (5, 3), (40, 3), (7, 0), (6, 100)])
def test_pairs_in_a_window_are_counted_one_by_one(length, radius):
    places = np.arange(length)
    expected = (np.abs(places[:, None] - places[None]) <= radius).sum()
    layer = LayerWork(0.0, 0.0, 1.0, radius=radius)
    assert layer.pairs(np.array([length, 1])).tolist() == [expected, 1]


def test_windows_gates_and_distances_change_the_count():
    options = ModernBertOptions(global_every=2, local_attention=8)
    config = SMALL.replace(family="modernbert", options=options)
    plain, window = FAMILIES["modernbert"].layer_work(config, "fill-mask")
    assert (plain.radius, window.radius) == (None, 4)
    assert plain.after_attention - standard_layer(config).after_attention == 8 * 16


def test_lengths_of_packed_masked_and_whole_rows():
    segments = np.array([[1, 1, 2, 0], [3, 3, 3, 3], [1, 0, 0, 0]])
    ids = np.zeros((3, 4), np.int32)
    packed = {"input_ids": ids, "segment_ids": segments, "example_weight": np.array([1.0, 1.0, 0.0])}
    assert sorted(text_lengths(packed).tolist()) == [1, 2, 4]
    masked = {"input_ids": ids, "attention_mask": (segments > 0).astype(np.int32)}
    assert text_lengths(masked).tolist() == [3, 4, 1]
    choices = {name: np.stack([array, array], axis=1) for name, array in masked.items()}
    assert text_lengths(choices).tolist() == [3, 3, 4, 4, 1, 1]
    assert text_lengths({"input_ids": ids}).tolist() == [4, 4, 4]


def test_a_packed_row_costs_less_than_one_long_text():
    work = [NetworkWork(BASE, "fill-mask")]
    ids = np.zeros((1, 512), np.int32)
    labels = np.full((1, 80), -100)
    labels[0, :70] = 5
    common = {"input_ids": ids, "labels": labels, "masked_positions": np.zeros((1, 80), np.int32)}
    whole = batch_flops(work, {**common, "segment_ids": np.ones((1, 512), np.int32)})
    packed = batch_flops(work, {**common, "segment_ids": np.repeat(np.arange(1, 5), 128)[None]})
    attention = 3 * 4 * 12 * 768
    assert whole - packed == pytest.approx(attention * (512**2 - 4 * 128**2))
    assert batch_flops(work * 2, {**common, "segment_ids": np.ones((1, 512), np.int32)}) == 2 * whole
