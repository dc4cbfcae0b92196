"""The interface of engines."""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.serve.functions import Function
from flaxbert.serve.shapes import ShapePlan

Report = Callable[[int, int], None]
"""Is told how many programs are ready, of how many."""


class Engine(abc.ABC):
    """Runs the functions of one model. ``start`` and ``finish`` are called by one thread, batch after batch.

    Attributes:
      name: What users call it.
      functions: The functions, by name.
      plan: The shapes that it is ready for.
      pad_token_id: What fills ``input_ids``.
      exact_shapes: Whether batches must have a shape of the plan; else they are as long as their longest row.
      pipelined: Whether the next batch may be started before the last one is finished, because the host is idle meanwhile.
    """

    name: str = ""
    functions: Mapping[str, Function]
    plan: ShapePlan
    pad_token_id: int = 0
    exact_shapes: bool = True
    pipelined: bool = False

    @abc.abstractmethod
    def prepare(self, report: Report) -> None:
        """Makes everything ready that requests of any shape need, so that none waits for it later.

        Args:
          report: Is told how far it is.
        """

    @abc.abstractmethod
    def start(self, function: str, batch: Mapping[str, Int[np.ndarray, "..."]]) -> Any:
        """Starts the computation of a batch.

        Args:
          function: Name of the function.
          batch: Its inputs, of a shape of the plan.

        Returns:
          What ``finish`` takes.
        """

    @abc.abstractmethod
    def finish(self, started: Any) -> np.ndarray:
        """Returns what a started batch became, one entry a row.

        Args:
          started: From ``start``.
        """

    def run(self, function: str, batch: Mapping[str, Int[np.ndarray, "..."]]) -> np.ndarray:
        """Computes a batch.

        Args:
          function: Name of the function.
          batch: Its inputs.

        Returns:
          One entry a row.
        """
        return self.finish(self.start(function, batch))
