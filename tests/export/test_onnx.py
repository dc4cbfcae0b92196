"""Every family and task as an ONNX graph: the numbers of flaxbert in ONNX Runtime, for any batch, length and padding."""

import collections
import json

import numpy as np
import onnx
import pytest

from flaxbert.core.trees import flatten_names
from flaxbert.errors import ConfigError
from flaxbert.export import engines
from flaxbert.export.onnx_file import build_graph, metadata_of, to_model, write_model
from flaxbert.export.products import Products
from flaxbert.export.signature import signature_of
from flaxbert.export.verify import compare
from flaxbert.families import FAMILIES
from tests.export.models import batches, inputs_of, small_model

CLOSE = 1e-4
"""Largest difference relative to the largest output: the same float32 numbers, added up in another order. The single score of a choice is
a small difference of large sums; others are ten times nearer."""

QUICK = {
    ("bert", "sequence-classification"),
    ("albert", "pretraining"),
    ("deberta-v2", "multiple-choice"),
    ("modernbert", "token-classification"),
}
"""Families whose mathematics differs, each with another task; ``make test-slow`` takes all pairs."""

PAIRS = [
    pytest.param(family.model_type, task, marks=() if (family.model_type, task) in QUICK else pytest.mark.slow)
    for family in FAMILIES.values()
    for task in family.architectures
]


def model_file(signature):
    return to_model(build_graph(signature, Products()), metadata_of(signature.model))


def operators(model):
    return collections.Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_onnx_runtime_computes_what_flaxbert_does(family, task, tmp_path):
    model = small_model(family, task)
    signature = signature_of(model)
    write_model(model_file(signature), tmp_path / "model.onnx")
    engine = engines.open_onnxruntime(tmp_path / "model.onnx")
    inputs = [inputs_of(batch, signature) for batch in batches(model)]
    found = compare(engine, signature, inputs)
    assert len(found) == len(inputs) * len(signature.outputs)
    assert max(entry.relative for entry in found) < CLOSE


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("question-answering", ("start_logits", "end_logits")),
        ("pretraining", ("prediction_logits", "seq_relationship_logits")),
        ("sentence-similarity", ("last_hidden_state", "sentence_embedding")),
        ("feature-extraction", ("last_hidden_state", "pooler_output")),
        ("token-classification", ("logits",)),
    ],
)
def test_outputs_have_the_names_of_stock_exports(task, outputs):
    assert signature_of(small_model("bert", task)).outputs == outputs


@pytest.mark.parametrize(("family", "num_types"), [("bert", 2), ("roberta", 1), ("distilbert", 0)])
def test_inputs_have_the_names_of_stock_exports(family, num_types):
    names = ("input_ids", "attention_mask", "token_type_ids")[: 3 if num_types > 1 else 2]
    assert signature_of(small_model(family, type_vocab_size=num_types)).inputs == names


@pytest.fixture(scope="module")
def graph():
    return model_file(signature_of(small_model("bert", "fill-mask", intermediate_size=56)))


def test_the_graph_is_made_of_the_operators_that_engines_fuse(graph):
    config = small_model("bert", "fill-mask", intermediate_size=56).config
    found = operators(graph)
    layers = config.num_hidden_layers
    assert found["LayerNormalization"] == 2 * layers + 2
    assert found["Softmax"] == layers
    assert found["Gelu"] == layers + 1
    assert found["MatMul"] == 8 * layers + 2
    assert found["Where"] == found["Equal"] == 1, "the mask is computed once"
    assert not set(found) & {"Expand", "Cast", "Erf", "ReduceMean"}


def test_inputs_are_dynamic_int64(graph):
    for entry in graph.graph.input:
        kind = entry.type.tensor_type
        assert kind.elem_type == onnx.TensorProto.INT64
        assert [size.dim_param for size in kind.shape.dim] == ["batch_size", "sequence_length"]


def test_a_tied_table_is_stored_once(graph):
    names = [tensor.name for tensor in graph.graph.initializer]
    assert names.count("embeddings.word.embedding") == 1
    sizes = [tensor.dims for tensor in graph.graph.initializer if 40 in tensor.dims and 24 in tensor.dims]
    assert len(sizes) == 1


def test_weights_are_those_of_the_model(graph):
    leaves = flatten_names(small_model("bert", "fill-mask", intermediate_size=56).params)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    shared = set(leaves) & set(stored)
    assert len(shared) > 30
    for name in shared:
        np.testing.assert_array_equal(stored[name], np.asarray(leaves[name]))


def test_the_file_says_what_it_is(graph):
    properties = {entry.key: entry.value for entry in graph.metadata_props}
    assert properties["task"] == "fill-mask"
    assert properties["model_type"] == "bert"
    assert properties["flaxbert_version"]
    assert json.loads(properties["id2label"]) == {}


def test_large_weights_go_to_a_file_beside(tmp_path):
    model = small_model("bert", "sequence-classification")
    signature = signature_of(model)
    files = write_model(model_file(signature), tmp_path / "model.onnx", largest_bytes=1000)
    assert [file.name for file in files] == ["model.onnx", "model.onnx.data"]
    assert files[1].stat().st_size > 10 * 1024
    engine = engines.open_onnxruntime(files[0])
    found = compare(engine, signature, [inputs_of(batch, signature) for batch in batches(model, ((7, 3),))])
    assert max(entry.relative for entry in found) < CLOSE


def test_attention_of_long_inputs_is_traced_for_any_length():
    model = small_model("bert", "token-classification", max_position_embeddings=2048)
    assert operators(model_file(signature_of(model)))["Softmax"] == model.config.num_hidden_layers


def test_onnx_runtime_fuses_norms_and_activations(tmp_path):
    import onnxruntime

    file = tmp_path / "model.onnx"
    write_model(model_file(signature_of(small_model("bert", "token-classification"))), file)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    found = operators(onnx.load(tmp_path / "fused.onnx"))
    layers = small_model("bert", "token-classification").config.num_hidden_layers
    assert found["SkipLayerNormalization"] == 2 * layers
    assert found["BiasGelu"] == layers


def test_what_can_not_be_written_is_named(monkeypatch):
    from flaxbert.export import primitives

    monkeypatch.delitem(primitives.PRIMITIVES, "tanh")
    with pytest.raises(ConfigError, match="uses 'tanh'.*--format stablehlo"):
        model_file(signature_of(small_model("bert", "sequence-classification")))
