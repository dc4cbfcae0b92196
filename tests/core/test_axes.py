"""Every parameter of every family has named axes, and the names have the right sizes."""

import pytest

from flaxbert.architecture import TASK_HEADS, Execution, ModelConfig
from flaxbert.core import axes
from flaxbert.core.axes import ACTIVATION_AXES, PARAMETER_AXES, axis_size
from flaxbert.core.sharding import LOGICAL_TO_PHYSICAL
from flaxbert.core.trees import flatten_names
from flaxbert.families import FAMILIES, get_family
from flaxbert.families.graph import abstract_params

# All sizes differ, so that a leaf whose axes are swapped or mistaken can not pass.
DISTINCT = {
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 22,
    "max_position_embeddings": 17,
    "num_labels": 7,
}


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("token_types", [0, 4])
@pytest.mark.parametrize("task", TASK_HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_axes_of_every_parameter_give_its_shape(family, task, token_types, scanned):
    config = ModelConfig(family=family, type_vocab_size=token_types, **DISTINCT)
    leaves = flatten_names(abstract_params(config, task, Execution(scan_layers=scanned)))
    named = get_family(family).parameter_axes(list(leaves))
    assert named.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert leaf.shape == tuple(axis_size(axis, config) for axis in named[name]), name


def test_every_parameter_axis_has_a_physical_axis_or_none():
    assert set(PARAMETER_AXES) == set(LOGICAL_TO_PHYSICAL)


def test_names_are_constants_and_activation_axes_have_no_size():
    constants = {value for name, value in vars(axes).items() if name.isupper() and isinstance(value, str)}
    assert {*PARAMETER_AXES, *ACTIVATION_AXES} <= constants
    with pytest.raises(KeyError):
        axis_size(axes.BATCH, ModelConfig())


def test_heads_and_head_dim_make_up_attention():
    config = ModelConfig(hidden_size=48, num_attention_heads=6)
    assert axis_size(axes.HEADS, config) * axis_size(axes.HEAD_DIM, config) == axis_size(axes.ATTENTION, config)
