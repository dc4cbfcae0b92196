"""Names of axes; that every parameter of every family has axes of the right sizes is in ``tests/families/test_layout.py``."""

import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.core import axes
from flaxbert.core.axes import ACTIVATION_AXES, PARAMETER_AXES, axis_size
from flaxbert.core.sharding import LOGICAL_TO_PHYSICAL


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
