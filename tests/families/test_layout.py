"""Axes and tensor names of every family, for every task that it has."""

import pytest

from flaxbert.architecture import TASK_HEADS
from flaxbert.core.axes import PARAMETER_AXES
from flaxbert.core.trees import flatten_names, stack_layers
from flaxbert.families import FAMILIES
from flaxbert.families.graph import abstract_params
from tests.families.examples import odd_config

EVERY_TASK = [(family, task) for family in FAMILIES.values() for task in family.architectures]


@pytest.mark.parametrize(("family", "task"), EVERY_TASK, ids=lambda value: getattr(value, "model_type", value))
@pytest.mark.parametrize(("stacked", "embedding_size"), [pytest.param(False, 6, marks=pytest.mark.slow), (True, 0)])
def test_every_parameter_has_axes_of_its_sizes(family, task, stacked, embedding_size):
    config = odd_config(family, task, embedding_size=embedding_size)
    params = abstract_params(config, task)
    leaves = flatten_names(stack_layers(params) if stacked else params)
    named = family.parameter_axes(list(leaves))
    for name, leaf in leaves.items():
        assert set(named[name]) <= {*PARAMETER_AXES, *family.own_axes}, name
        assert leaf.shape == tuple(family.axis_size(axis, config) for axis in named[name]), name


@pytest.mark.parametrize(("family", "task"), EVERY_TASK, ids=lambda value: getattr(value, "model_type", value))
def test_every_parameter_has_a_tensor_name_and_every_task_a_class(family, task):
    config = odd_config(family, task)
    table = family.tensor_table(config)
    leaves = set(flatten_names(abstract_params(config, task)))
    assert leaves <= set(table)
    assert len({table[leaf].name_for(task) for leaf in leaves}) == len(leaves)
    assert task in TASK_HEADS
    assert all(tie.leaf in table for tie in family.tied.values())
