"""Small models whose heads and neurons tests prune."""

import jax
import numpy as np

from flaxbert.core.trees import leaf_names
from flaxbert.families import get_family
from flaxbert.transforms.units import find_units
from tests.nn.models import small_config, small_params

TASK = "token-classification"


def small_model(family="bert", **changes):
    """Config, parameters on the host, and axis names of a small model with four heads of eight."""
    config = small_config(family, TASK, **{"hidden_size": 32, "num_attention_heads": 4, **changes})
    params = jax.tree.map(np.asarray, small_params(config, TASK))
    return config, params, get_family(family).parameter_axes(leaf_names(params))


def unit_axes(config):
    """Axes that carry heads and neurons, of the kinds that the family lets go."""
    family = get_family(config.family)
    axes = {"heads": family.head_axes, "neurons": family.neuron_axes}
    return {kind: found for kind, found in axes.items() if kind not in family.unprunable(config)}


def units_of(config, params, axes, kind):
    """The units of one kind."""
    return find_units(config, params, axes, kind, unit_axes(config)[kind])
