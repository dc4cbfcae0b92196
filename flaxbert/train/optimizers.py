"""The optimizer of a run by its name: our own fused rules, and those of optax."""

from collections.abc import Mapping, Sequence
from typing import Any

from flaxbert.config import TrainConfig
from flaxbert.core.axes import LAYERS
from flaxbert.train.optax_rules import OptaxOptimizer
from flaxbert.train.optimizer import Optimizer
from flaxbert.train.schedules import make_schedule


def make_optimizer(
    config: TrainConfig, num_steps: int, leaf_axes: Mapping[str, Sequence[str]] | None = None
) -> Optimizer:
    """Builds the optimizer of a run.

    Args:
      config: Update rule, learning rate, decay and clipping.
      num_steps: Optimizer steps of the whole run, for the schedule.
      leaf_axes: Axis names by leaf name, which say what stacked layers are; None where no layers are stacked.

    Returns:
      The optimizer.

    Raises:
      ConfigError: The warm-up is longer than the run.
    """
    options: dict[str, Any] = {
        "name": config.optimizer,
        "schedule": make_schedule(config, num_steps),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "beta1": config.adam_beta1,
        "beta2": config.adam_beta2,
        "epsilon": config.adam_epsilon,
        "momentum": config.momentum,
    }
    if config.optimizer in ("adamw", "adam", "sgd"):
        return Optimizer(**options)
    stacked = frozenset(name for name, axes in (leaf_axes or {}).items() if axes and axes[0] == LAYERS)
    return OptaxOptimizer(**options, config=config, stacked=stacked)
