"""config.json of all families, and BERT's own in its variants."""

import json

import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.errors import ConfigError
from flaxbert.families import FAMILIES, get_family
from flaxbert.families.bert import BERT

ODD = ModelConfig(
    vocab_size=31,
    hidden_size=15,
    num_hidden_layers=3,
    num_attention_heads=5,
    intermediate_size=7,
    max_position_embeddings=11,
    type_vocab_size=3,
    num_labels=4,
)
GOOGLE = {
    "attention_probs_dropout_prob": 0.2,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.3,
    "hidden_size": 4,
    "initializer_range": 0.05,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pooler_type": "first_token_transform",
    "type_vocab_size": 2,
    "vocab_size": 15,
}


SIZES = {
    "vocab_size": 31,
    "hidden_size": 15,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 7,
    "hidden_act": "relu",
    "hidden_dropout_rate": 0.25,
    "attention_dropout_rate": 0.125,
    "classifier_dropout_rate": 0.5,
    "max_position_embeddings": 11,
    "pad_token_id": 2,
    "labels": ("a", "b", "c", "d"),
    "num_labels": 4,
    "problem_type": "multi_label_classification",
}


OWN_SIZES = {"mpnet": {"pad_token_id": 1}}  # the only one that stock MPNet can work with


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_config_survives_the_round_trip(family):
    sizes = {**SIZES, **OWN_SIZES.get(family.model_type, {})}
    for task in family.architectures:
        written = family.config_to_json(ModelConfig(family=family.model_type, **sizes), task)
        config = family.config_from_json(json.loads(json.dumps(written)))
        assert {name: getattr(config, name) for name in sizes} == sizes
        assert family.config_from_json(json.loads(json.dumps(family.config_to_json(config, task)))) == config
        assert written["architectures"] == [family.architectures[task]]
        assert written["model_type"] == family.model_type


def test_googles_config_is_read():
    config = BERT.config_from_json(GOOGLE)
    assert (config.hidden_dropout_rate, config.attention_dropout_rate, config.initializer_range) == (0.3, 0.2, 0.05)
    assert (config.hidden_act, config.layer_norm_epsilon, config.num_labels) == ("relu", 1e-12, 2)
    assert dict(config.extra) == {"pooler_type": "first_token_transform"}
    assert BERT.config_to_json(config, "fill-mask")["pooler_type"] == "first_token_transform"


def test_label_names_are_ordered_by_number():
    config = BERT.config_from_json({**GOOGLE, "id2label": {"1": "good", "0": "bad", "2": "best"}})
    assert config.labels == ("bad", "good", "best")
    assert config.num_labels == 3


def test_no_token_types_are_written_as_one():
    written = BERT.config_to_json(ODD.replace(type_vocab_size=0), "fill-mask")
    assert written["type_vocab_size"] == 1
    assert BERT.config_from_json(written).type_vocab_size == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": None}, "vocab_size of the model|vocab_size"),
        ({"hidden_size": 4.5}, "hidden_size of config.json is 4.5, but must be a whole number"),
        ({"hidden_size": True}, "hidden_size of config.json is True"),
        ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob of config.json is '0.1', but must be a number"),
        ({"hidden_act": 3}, "hidden_act of config.json is 3, but must be a word"),
        ({"hidden_act": "geluu"}, "Did you mean 'gelu'"),
        ({"num_attention_heads": 3}, "not divisible by num_attention_heads 3"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
        ({"add_cross_attention": True}, "describes a decoder"),
        ({"id2label": ["a"]}, "must map numbers to names"),
        ({"id2label": {"x": "a"}}, "must map numbers to names"),
        ({"id2label": {"1": "a", "2": "b"}}, "not 0 to n-1"),
    ],
)
def test_unusable_values_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        BERT.config_from_json({key: value for key, value in {**GOOGLE, **change}.items() if value is not None})


def test_unknown_family_suggests():
    with pytest.raises(ConfigError, match="Did you mean 'bert'"):
        get_family("berta")


def test_distilberts_sizes_may_have_the_names_of_other_families():
    pytest.importorskip("torch", reason="needs the test extra")
    from transformers import DistilBertConfig

    both = {
        "vocab_size": 9,
        "hidden_dim": 5,
        "n_layers": 6,
        "num_hidden_layers": 3,
        "dim": 8,
        "hidden_size": 12,
        "n_heads": 2,
        "num_attention_heads": 4,
    }
    config, stock = get_family("distilbert").config_from_json(dict(both)), DistilBertConfig(**both)
    ours = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    assert ours == (stock.n_layers, stock.dim, stock.n_heads) == (3, 12, 4)
    written = get_family("distilbert").config_to_json(config, "fill-mask")
    assert (written["n_layers"], "num_hidden_layers" in written) == (3, False)
