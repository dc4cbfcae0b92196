"""BERT's config mapping, name table and axes."""

import json

import pytest

from flaxbert.architecture import TASK_HEADS, ModelConfig
from flaxbert.core.axes import PARAMETER_AXES, axis_size
from flaxbert.core.trees import flatten_names, stack_layers
from flaxbert.errors import ConfigError
from flaxbert.families import FAMILIES, get_family
from flaxbert.families.bert import ARCHITECTURES, config_from_json, config_to_json
from flaxbert.families.graph import abstract_params

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


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
@pytest.mark.parametrize("task", TASK_HEADS)
@pytest.mark.parametrize("stacked", [False, True])
def test_every_parameter_has_axes_of_its_sizes(family, task, stacked):
    params = abstract_params(ODD, task)
    leaves = flatten_names(stack_layers(params) if stacked else params)
    named = family.parameter_axes(list(leaves))
    for name, leaf in leaves.items():
        assert set(named[name]) <= set(PARAMETER_AXES), name
        assert leaf.shape == tuple(axis_size(axis, ODD) for axis in named[name]), name


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
@pytest.mark.parametrize("task", TASK_HEADS)
def test_every_parameter_has_a_tensor_name_and_every_task_a_class(family, task):
    table = family.tensor_table(ODD)
    assert set(flatten_names(abstract_params(ODD, task))) <= set(table)
    assert len({entry.tensor for entry in table.values()}) == len(table)
    assert task in family.architectures
    assert all(tie.leaf in table for tie in family.tied.values())


def test_config_survives_the_round_trip():
    for task in ARCHITECTURES:
        config = ODD.replace(labels=("a", "b", "c", "d"), problem_type="multi_label_classification")
        assert config_from_json(json.loads(json.dumps(config_to_json(config, task)))) == config


def test_googles_config_is_read():
    config = config_from_json(GOOGLE)
    assert (config.hidden_dropout_rate, config.attention_dropout_rate, config.initializer_range) == (0.3, 0.2, 0.05)
    assert (config.hidden_act, config.layer_norm_epsilon, config.num_labels) == ("relu", 1e-12, 2)
    assert dict(config.extra) == {"pooler_type": "first_token_transform"}
    assert config_to_json(config, "fill-mask")["pooler_type"] == "first_token_transform"


def test_label_names_are_ordered_by_number():
    config = config_from_json({**GOOGLE, "id2label": {"1": "good", "0": "bad", "2": "best"}})
    assert config.labels == ("bad", "good", "best")
    assert config.num_labels == 3


def test_no_token_types_are_written_as_one():
    written = config_to_json(ODD.replace(type_vocab_size=0), "fill-mask")
    assert written["type_vocab_size"] == 1
    assert config_from_json(written).type_vocab_size == 0


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
        config_from_json({key: value for key, value in {**GOOGLE, **change}.items() if value is not None})


def test_unknown_family_suggests():
    with pytest.raises(ConfigError, match="Did you mean 'bert'"):
        get_family("berta")
