"""Calibration: what is measured is what the kernels really see, in every family, padding left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.compression.quantization import quantization_rules, quantize_model
from flaxbert.core.low_bit_arrays import ObservedArray, StaticQuantizedArray
from flaxbert.core.rules import match_rules
from flaxbert.core.trees import flatten_names, stack_layers, unflatten_names
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, DataError, RuleError, ShapeError
from flaxbert.evaluation.calibrate import calibrate, measure_statistics
from flaxbert.families import FAMILIES
from flaxbert.families.graph import forward, graph_definition
from flaxbert.model import Model
from flaxbert.transforms import quantize
from flaxbert.transforms.quantize import QuantizationSpec
from tests.helpers import slow_unless
from tests.nn.models import small_config, small_params

EXACT = 2e-4
"""Relative: moments are summed in float32 in another order."""

STATIC_MOVEMENT = 0.2
"""Largest movement of a logit relative to the largest: as for dynamic int8, with one range for all tokens instead of one for each."""

QUICK = {"bert"}
EVERY_FAMILY = pytest.mark.parametrize("family", slow_unless(QUICK.__contains__, FAMILIES))
TASK = "token-classification"


def examples(config, lengths=(5, 9, 3, 9), seed=0):
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, config.vocab_size, sum(lengths)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenizedExamples(ids, None, offsets, np.zeros(len(lengths), bool), pad_token_id=config.pad_token_id)


def small_model(family="bert", task=TASK):
    config = small_config(family, task)
    return Model(config, small_params(config, task), task)


def kernels(model):
    specs = match_rules(model.params, quantization_rules(QuantizationSpec()), purpose="quantization")
    return [name for name, spec in specs.items() if spec is not None and name.endswith(".kernel")]


def seen_one_by_one(model, texts, name):
    """Inputs of a kernel, one text at a time without padding, kept whole."""
    graphdef = graph_definition(model.config, model.task, Execution(attention="xla"))
    heard = []
    leaves = flatten_names(model.params)
    leaves[name] = ObservedArray(leaves[name], name, lambda _, inputs: heard.append(np.asarray(inputs)))
    with jax.disable_jit():
        for start, end in zip(texts.offsets[:-1], texts.offsets[1:], strict=True):
            ids = jnp.asarray(texts.input_ids[None, start:end])
            forward(graphdef, unflatten_names(leaves), {"input_ids": ids, "attention_mask": jnp.ones_like(ids)})
    return np.concatenate([array.reshape(-1, array.shape[-1]) for array in heard])


@EVERY_FAMILY
def test_every_kernel_is_measured_and_padding_is_not(family):
    model = small_model(family)
    texts = examples(model.config)
    found = measure_statistics(model, texts, kernels(model), second_moments=True, histograms=True)
    assert set(found) == set(kernels(model))
    for name in (kernels(model)[0], kernels(model)[-1]):
        seen = seen_one_by_one(model, texts, name)
        statistics = found[name]
        assert statistics.count == len(seen)
        assert statistics.histogram.sum() == seen.size
        scale = np.abs(seen).max()
        np.testing.assert_allclose(statistics.low, seen.min(axis=0), atol=EXACT * scale)
        np.testing.assert_allclose(statistics.high, seen.max(axis=0), atol=EXACT * scale)
        np.testing.assert_allclose(statistics.mean_magnitude, np.abs(seen).mean(axis=0), atol=EXACT * scale)
        moment = seen.T.astype(np.float64) @ seen / len(seen)
        np.testing.assert_allclose(statistics.second_moment, moment, atol=EXACT * np.abs(moment).max())


@EVERY_FAMILY
def test_static_models_answer_almost_like_the_float_model(family):
    model = small_model(family)
    texts = examples(model.config, (9,) * 12)
    quantized, report = quantize_model(model, QuantizationSpec(activations="static"), texts)
    assert {type(flatten_names(quantized.params)[name]) for name in kernels(model)} == {StaticQuantizedArray}
    assert report.notes[-1] == "Measured on 12 examples."
    batch = {"input_ids": texts.input_ids.reshape(12, 9)}
    before, after = (np.asarray(m.apply(m.params, batch).logits) for m in (model, quantized))
    assert np.abs(after - before).max() < STATIC_MOVEMENT * np.abs(before).max()
    assert np.abs(after - before).max() > 0


@pytest.mark.parametrize("spec", [
    pytest.param(QuantizationSpec(rounding="gptq"), marks=pytest.mark.slow),
    QuantizationSpec(4, 4, rounding="gptq"),
    QuantizationSpec(4, 4, rounding="awq"),
    QuantizationSpec(activations="static", activation_range="entropy", smoothing=0.5, rounding="gptq"),
    pytest.param(QuantizationSpec(activations="static", activation_range="percentile"), marks=pytest.mark.slow),
])  # fmt: skip
def test_calibrated_ways_answer_no_worse_than_twice_the_plain_way(spec):
    model = small_model()
    texts = examples(model.config, (9,) * 40)
    plain = QuantizationSpec(spec.bits, spec.group_size)
    batch = {"input_ids": texts.input_ids.reshape(40, 9)}
    exact = np.asarray(model.apply(model.params, batch).logits)
    errors = []
    for way in (plain, spec):
        quantized, _ = quantize_model(model, way, texts)
        errors.append(np.linalg.norm(np.asarray(quantized.apply(quantized.params, batch).logits) - exact))
    assert errors[1] < (2.0 if spec.activations == "static" else 1.05) * errors[0]


def test_a_pooler_is_measured_on_first_tokens():
    model = small_model(task="sequence-classification")
    texts = examples(model.config)
    found = measure_statistics(model, texts, ["pooler.dense.kernel"])["pooler.dense.kernel"]
    assert found.count == 4


def test_nothing_is_run_where_nothing_must_be_known():
    model = small_model()
    assert calibrate(model, examples(model.config), quantization_rules(QuantizationSpec())) == {}


def test_what_can_not_be_measured_is_named():
    model = small_model()
    with pytest.raises(RuleError, match="'encoder.layers.0.wrong.kernel' is to be calibrated, but is no leaf"):
        measure_statistics(model, examples(model.config), ["encoder.layers.0.wrong.kernel"])
    with pytest.raises(RuleError, match="does not multiply by 'embeddings.word.embedding'"):
        measure_statistics(model, examples(model.config), ["embeddings.word.embedding"])
    with pytest.raises(DataError, match="no examples to calibrate on"):
        measure_statistics(model, examples(model.config, ()), kernels(model))
    stacked = model.replace(params=stack_layers(model.params))
    with pytest.raises(ConfigError, match="stacked"):
        measure_statistics(stacked, examples(model.config), kernels(model))


def test_statistics_of_another_model_or_none_are_refused():
    model = small_model()
    rules = quantization_rules(QuantizationSpec(activations="static"))
    with pytest.raises(RuleError, match="nothing was measured of its inputs"):
        quantize(model.params, rules)
    wide = small_config(task=TASK, hidden_size=48)
    other = Model(wide, small_params(wide, TASK), TASK)
    with pytest.raises(ShapeError, match="24 inputs, but its statistics are of 48"):
        quantize(model.params, rules, calibrate(other, examples(wide), rules))
    with pytest.raises(RuleError, match="no second moment"):
        quantize(
            model.params,
            quantization_rules(QuantizationSpec(rounding="gptq")),
            calibrate(model, examples(model.config), rules),
        )
    with pytest.raises(ConfigError, match="must be calibrated"):
        quantize_model(model, QuantizationSpec(rounding="gptq"), None)
