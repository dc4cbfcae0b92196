"""int8 and 4 bits: dynamic and static products, calibration, and what engines make of them."""

import collections

import numpy as np
import onnx
import pytest

from flaxbert.core.arrays import is_typed
from flaxbert.core.trees import flatten_names, map_leaves
from flaxbert.errors import ConfigError, DataError
from flaxbert.export import engines
from flaxbert.export.calibration import Calibration, measure_ranges, sample_inputs
from flaxbert.export.export import reduce_range
from flaxbert.export.integer_products import DynamicProducts, StaticProducts, unsigned_scale
from flaxbert.export.onnx_file import build_graph, to_model, write_model
from flaxbert.export.signature import signature_of
from flaxbert.export.verify import compare
from flaxbert.transforms import QuantizationSpec, default_quantization_rules, quantize, sparsify
from tests.export.models import batches, inputs_of, quantized, small_model, wide_model

MOVED = 0.15
"""Largest deviation of int8 exports of a random two-layer network from flaxbert's int8: both round activations, in other steps."""

SAME = 1e-5
"""Relative; codes that are written out give the numbers of flaxbert in another order of sums."""

EQUAL_CODES = 0.01
"""Deviation where activations are rounded to the same codes, save for those that lie within a rounding error of the middle of two."""

CODES_63 = 63


def graph_file(signature, products):
    return to_model(build_graph(signature, products), {})


def deviation(model, products, tmp_path, open_engine=engines.open_onnxruntime):
    signature = signature_of(model)
    file = tmp_path / "model.onnx"
    write_model(graph_file(signature, products), file)
    found = compare(open_engine(file), signature, [inputs_of(batch, signature) for batch in batches(model)])
    return max(entry.deviation for entry in found)


def ranges_of(model, calibration=None):
    calibration = calibration or Calibration()
    signature = signature_of(model)
    return measure_ranges(signature, [inputs_of(batch, signature) for batch in batches(model)], calibration)


@pytest.fixture(scope="module")
def int8_model():
    return quantized(wide_model(), small_codes=True)


@pytest.fixture(scope="module")
def ranges(int8_model):
    return ranges_of(int8_model)


def test_dynamic_int8_stays_near_flaxbert(int8_model, tmp_path):
    assert 0.0 < deviation(int8_model, DynamicProducts(), tmp_path) < MOVED


@pytest.mark.parametrize("quantizes_scores", [False, True])
def test_static_int8_stays_near_flaxbert(int8_model, ranges, tmp_path, quantizes_scores):
    products = StaticProducts(ranges=ranges, quantizes_scores=quantizes_scores)
    assert 0.0 < deviation(int8_model, products, tmp_path) < MOVED


def test_full_codes_are_exact_where_the_engine_is_asked_to_be(tmp_path):
    model = quantized(wide_model())
    exact = lambda file: engines.open_onnxruntime(file, exact=True)
    assert deviation(model, StaticProducts(ranges=ranges_of(model)), tmp_path, exact) < MOVED


def statistics(model, rules):
    """What ``flaxbert quantize`` measures, on random tokens."""
    from flaxbert.data.tokenization import TokenizedExamples
    from flaxbert.evaluation.calibrate import calibrate

    ids = np.random.default_rng(0).integers(2, model.config.vocab_size, 120).astype(np.int32)
    examples = TokenizedExamples(ids, np.zeros(120, np.int32), np.arange(0, 121, 20), np.zeros(6, bool))
    return calibrate(model, examples, rules)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_static_leaves_give_the_numbers_of_flaxbert(tmp_path, smoothing):
    model = wide_model()
    rules = default_quantization_rules(QuantizationSpec(activations="static", smoothing=smoothing))
    leaves = quantize(model.params, rules, statistics(model, rules))[0]
    model = model.replace(params=map_leaves(lambda _, leaf: reduce_range(leaf), leaves))
    kinds = {leaf.kind for leaf in flatten_names(model.params).values() if is_typed(leaf)}
    assert kinds == {"static", "quantized"}, "kernels, and the table of words"
    assert deviation(model, DynamicProducts(), tmp_path) < EQUAL_CODES


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", "fill-mask"),
        *(
            pytest.param(family, "token-classification", marks=pytest.mark.slow)
            for family in (
                "albert",
                "convbert",
                "deberta",
                "deberta-v2",
                "modernbert",
                "mpnet",
                "nomic_bert",
                "roberta",
            )
        ),
    ],
)
def test_static_int8_of_families(family, task, tmp_path):
    sizes = {"hidden_size": 48, "intermediate_size": 96}
    model = quantized(small_model(family, task, **sizes), small_codes=True)
    assert deviation(model, StaticProducts(ranges=ranges_of(model)), tmp_path) < 2 * MOVED, "narrower, hence coarser"


def test_dynamic_int8_uses_the_operators_that_onnx_runtime_fuses(int8_model, tmp_path):
    import onnxruntime

    file = tmp_path / "model.onnx"
    write_model(graph_file(signature_of(int8_model), DynamicProducts()), file)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    found = collections.Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    layers = int8_model.config.num_hidden_layers
    assert found["MatMulIntegerToFloat"] + found["DynamicQuantizeMatMul"] == 6 * layers + 1
    assert not found["MatMulInteger"]


def test_static_int8_rounds_the_inputs_of_matrices_once(int8_model, ranges):
    nodes = graph_file(signature_of(int8_model), StaticProducts(ranges=ranges)).graph.node
    found = collections.Counter(node.op_type for node in nodes)
    layers = int8_model.config.num_hidden_layers
    # Queries, keys and values share their input, except where the last block has but the first token's query to finish.
    assert found["QuantizeLinear"] == 4 * layers + 1
    assert found["DequantizeLinear"] == 4 * layers + 1 + 6 * layers + 1


def test_codes_are_stored_as_they_are(int8_model, ranges):
    name = "encoder.layers.0.feed_forward.up.kernel"
    leaf = flatten_names(int8_model.params)[name]
    for products in (DynamicProducts(), StaticProducts(ranges=ranges)):
        stored = {entry.name: entry for entry in graph_file(signature_of(int8_model), products).graph.initializer}
        assert name not in stored
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored[f"{name}@codes"]), np.asarray(leaf.codes))
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored[f"{name}@scale"]), np.asarray(leaf.scale)[0])


def test_four_bits_are_stored_packed_and_give_the_same_numbers(tmp_path):
    rules = default_quantization_rules(QuantizationSpec(4, 8))
    model = wide_model().replace(params=quantize(wide_model().params, rules)[0])
    graph = graph_file(signature_of(model), DynamicProducts())
    codes = [entry for entry in graph.graph.initializer if entry.data_type == onnx.TensorProto.INT4]
    assert len(codes) == 6 * model.config.num_hidden_layers + 1
    assert all(len(entry.raw_data) * 2 == np.prod(entry.dims) for entry in codes)
    assert deviation(model, DynamicProducts(), tmp_path) < SAME


@pytest.mark.parametrize(
    "spec",
    [
        QuantizationSpec(4, 8, rounding="awq"),
        pytest.param(QuantizationSpec(1, 16), marks=pytest.mark.slow),
        pytest.param(QuantizationSpec(2, 16), marks=pytest.mark.slow),
        pytest.param(QuantizationSpec(scheme="float8"), marks=pytest.mark.slow),
    ],
    ids=lambda spec: f"{spec.bits} bits, {spec.scheme}, {spec.rounding}",
)
def test_other_codes_give_the_same_numbers(tmp_path, spec):
    rules = default_quantization_rules(spec)
    model = wide_model().replace(params=quantize(wide_model().params, rules, statistics(wide_model(), rules))[0])
    assert deviation(model, DynamicProducts(), tmp_path) < SAME


def test_sparse_leaves_are_written_dense(tmp_path):
    model = wide_model().replace(params=sparsify(wide_model().params)[0])
    assert deviation(model, DynamicProducts(), tmp_path) < SAME


def test_a_leaf_without_a_range_is_named(int8_model):
    with pytest.raises(ConfigError, match=r"encoder\.layers\.0\.attention\.query\.kernel.*--calibration"):
        graph_file(signature_of(int8_model), StaticProducts())


def test_ranges_hold_what_meets_each_leaf(int8_model, ranges):
    kernels = {name for name in flatten_names(int8_model.params) if name.endswith(".kernel")}
    assert kernels <= set(ranges)
    queries = ranges["encoder.layers.0.attention.query.kernel"]
    assert queries == ranges["encoder.layers.0.attention.key.kernel"]
    low, high = ranges["attention.0.mixed.left"]
    assert 0.0 <= low <= high <= 1.0, "weights of attention"


def test_ranges_are_those_of_the_network():
    model = small_model("bert", "token-classification", num_hidden_layers=1)
    batch = {
        "input_ids": np.asarray([[3, 9, 4]]),
        "attention_mask": np.ones((1, 3)),
        "token_type_ids": np.zeros((1, 3)),
    }
    signature = signature_of(model)
    found = measure_ranges(signature, [inputs_of(batch, signature)])
    hidden = model.apply(model.params, {k: np.asarray(v, np.int32) for k, v in batch.items()}, keep_hidden=True)
    embedded, last = (np.asarray(values) for values in hidden.hidden_states)
    for name, values in (("encoder.layers.0.attention.query.kernel", embedded), ("classifier.kernel", last)):
        np.testing.assert_allclose(found[name], (values.min(), values.max()), rtol=1e-4)


def test_percentiles_leave_out_the_outermost(int8_model, ranges):
    cut = ranges_of(int8_model, Calibration("percentile", 95.0))
    name = "encoder.layers.0.feed_forward.down.kernel"
    assert ranges[name][0] <= cut[name][0] <= 0.0
    assert 0.0 < cut[name][1] < ranges[name][1]
    whole = ranges_of(int8_model, Calibration("percentile", 100.0))
    step = (ranges[name][1] - ranges[name][0]) / 4096
    np.testing.assert_allclose(whole[name], ranges[name], atol=1.01 * step)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "entropy"}, "'entropy'.*min-max or percentile"),
        ({"percentile": 40.0}, "percentile is 40"),
        ({"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_calibration_is_checked(settings, words):
    with pytest.raises(ConfigError, match=words):
        Calibration(**settings)


def test_no_texts_to_calibrate_with():
    from flaxbert.data.tokenization import TokenizedExamples

    nothing = TokenizedExamples(np.zeros(0, np.int32), None, np.zeros(1, np.int64), np.zeros(0, bool))
    with pytest.raises(DataError, match="no texts"):
        next(sample_inputs(nothing, signature_of(small_model()), 4))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_unsigned_scales_cover_the_range_and_hold_zero(low, high):
    scale, zero = unsigned_scale(low, high)
    values = np.linspace(low, high, 50)
    codes = np.clip(np.rint(values / scale) + zero, 0, 255)
    assert np.max(np.abs((codes - zero) * scale - values)) <= 0.51 * scale + 1e-7


def test_reduced_codes_stay_within_63_and_near():
    leaf = flatten_names(quantized(wide_model()).params)["encoder.layers.0.feed_forward.up.kernel"]
    reduced = reduce_range(leaf)
    assert np.abs(reduced.codes).max() <= CODES_63
    steps = np.abs(np.asarray(reduced.materialize()) - np.asarray(leaf.materialize())) / np.asarray(reduced.scale)
    assert steps.max() <= 0.51
    assert map_leaves(lambda _, leaf: reduce_range(leaf), {"bias": np.ones(3)})["bias"].sum() == 3
