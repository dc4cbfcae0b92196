"""Names of Google's checkpoints and what torch calls the same tensors."""

import pytest

from flaxbert.weights.formats.tensorflow_names import is_kernel, torch_names

GROUP = "bert/encoder/transformer/group_0/inner_group_0"
THEIR_GROUP = "albert.encoder.albert_layer_groups.0.albert_layers.0"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert/embeddings/word_embeddings", "bert.embeddings.word_embeddings.weight"),
        ("bert/embeddings/LayerNorm/gamma", "bert.embeddings.LayerNorm.weight"),
        ("bert/encoder/layer_11/attention/self/query/kernel", "bert.encoder.layer.11.attention.self.query.weight"),
        ("bert/encoder/layer_11/output/LayerNorm/beta", "bert.encoder.layer.11.output.LayerNorm.bias"),
        ("bert/pooler/dense/kernel", "bert.pooler.dense.weight"),
        ("cls/predictions/transform/LayerNorm/gamma", "cls.predictions.transform.LayerNorm.weight"),
        ("cls/predictions/output_bias", "cls.predictions.bias"),
        ("cls/seq_relationship/output_weights", "cls.seq_relationship.weight"),
        ("cls/squad/output_bias", "qa_outputs.bias"),
        ("output_weights", "classifier.weight"),
        ("output_bias", "classifier.bias"),
        ("bert/pooler/dense/kernel/adam_m", "bert/pooler/dense/kernel/adam_m"),
        ("bert/pooler/dense/kernel/Adam_1", "bert/pooler/dense/kernel/Adam_1"),
        ("global_step", "global_step"),
    ],
)
def test_bert(name, expected):
    assert torch_names([name]) == {name: expected}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert/embeddings/word_embeddings", "albert.embeddings.word_embeddings.weight"),
        ("bert/embeddings/LayerNorm/beta", "albert.embeddings.LayerNorm.bias"),
        ("bert/encoder/embedding_hidden_mapping_in/kernel", "albert.encoder.embedding_hidden_mapping_in.weight"),
        (f"{GROUP}/attention_1/self/key/bias", f"{THEIR_GROUP}.attention.key.bias"),
        (f"{GROUP}/attention_1/output/dense/kernel", f"{THEIR_GROUP}.attention.dense.weight"),
        (f"{GROUP}/LayerNorm/gamma", f"{THEIR_GROUP}.attention.LayerNorm.weight"),
        (f"{GROUP}/LayerNorm_1/gamma", f"{THEIR_GROUP}.full_layer_layer_norm.weight"),
        (f"{GROUP}/ffn_1/intermediate/dense/kernel", f"{THEIR_GROUP}.ffn.weight"),
        (f"{GROUP}/ffn_1/intermediate/output/dense/bias", f"{THEIR_GROUP}.ffn_output.bias"),
        ("bert/pooler/dense/kernel", "albert.pooler.weight"),
        ("cls/predictions/transform/dense/kernel", "predictions.dense.weight"),
        ("cls/predictions/transform/LayerNorm/gamma", "predictions.LayerNorm.weight"),
        ("cls/predictions/output_bias", "predictions.bias"),
        ("cls/seq_relationship/output_weights", "sop_classifier.classifier.weight"),
    ],
)
def test_albert(name, expected):
    anchor = f"{GROUP}/ffn_1/intermediate/dense/bias"
    assert torch_names([name, anchor])[name] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("electra/embeddings_project/kernel", "electra.embeddings_project.weight"),
        ("electra/encoder/layer_0/intermediate/dense/bias", "electra.encoder.layer.0.intermediate.dense.bias"),
        ("discriminator_predictions/dense_1/kernel", "discriminator_predictions.dense_prediction.weight"),
        ("generator_predictions/output_bias", "generator_predictions/output_bias"),
        ("generator/encoder/layer_0/output/dense/bias", "generator/encoder/layer_0/output/dense/bias"),
    ],
)
def test_electra_with_both_networks(name, expected):
    names = [name, "electra/embeddings/word_embeddings", "generator/embeddings_project/bias"]
    assert torch_names(names)[name] == expected


def test_electra_generator_alone():
    names = ["electra/embeddings/word_embeddings", "generator_predictions/output_bias"]
    assert torch_names(names)[names[1]] == "generator_lm_head.bias"


def test_kernels():
    assert is_kernel("bert/pooler/dense/kernel")
    assert not is_kernel("output_weights")
