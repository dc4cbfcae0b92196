"""Axes and tensor names of every family, for every task that it has."""

import pytest

from flaxbert.architecture import TASK_HEADS, ModelConfig
from flaxbert.core.axes import PARAMETER_AXES, axis_size
from flaxbert.core.trees import flatten_names, stack_layers
from flaxbert.families import FAMILIES
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
EVERY_TASK = [(family, task) for family in FAMILIES.values() for task in family.architectures]


@pytest.mark.parametrize(("family", "task"), EVERY_TASK, ids=lambda value: getattr(value, "model_type", value))
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("embedding_size", [0, 6])
def test_every_parameter_has_axes_of_its_sizes(family, task, stacked, embedding_size):
    config = ODD.replace(family=family.model_type, embedding_size=embedding_size)
    params = abstract_params(config, task)
    leaves = flatten_names(stack_layers(params) if stacked else params)
    named = family.parameter_axes(list(leaves))
    for name, leaf in leaves.items():
        assert set(named[name]) <= set(PARAMETER_AXES), name
        assert leaf.shape == tuple(axis_size(axis, config) for axis in named[name]), name


@pytest.mark.parametrize(("family", "task"), EVERY_TASK, ids=lambda value: getattr(value, "model_type", value))
def test_every_parameter_has_a_tensor_name_and_every_task_a_class(family, task):
    table = family.tensor_table(ODD)
    assert set(flatten_names(abstract_params(ODD.replace(family=family.model_type), task))) <= set(table)
    assert len({entry.name_for(task) for entry in table.values()}) == len(table)
    assert task in TASK_HEADS
    assert all(tie.leaf in table for tie in family.tied.values())
