"""Where a run writes."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """Where a run writes.

    Attributes:
      folder: Folder of the run: ``model/`` (the result), ``checkpoints/``, ``metrics.jsonl``, ``plots/``, ``tensorboard/``.
      tensorboard: Whether TensorBoard event files are written.
      plots: Whether PNG plots are written at the end.
      progress: auto shows a live line on a terminal and plain lines elsewhere; plain or off choose.
      register: Name under which the finished model is added to a registry; empty: to none.
      registry: Folder or URL of that registry; empty takes the variable FLAXBERT_REGISTRY.
    """

    folder: str = "runs/finetune"
    tensorboard: bool = True
    plots: bool = True
    progress: Literal["auto", "plain", "off"] = "auto"
    register: str = ""
    registry: str = ""
