"""What a comparison of models measures, and how thoroughly."""

import dataclasses
from collections.abc import Sequence

from flaxbert.config import AttentionName, PrecisionName
from flaxbert.config.checks import require, require_at_least


@dataclasses.dataclass(frozen=True)
class ComparisonSettings:
    """What a comparison measures.

    Attributes:
      examples: File, folder or hub id of labelled examples for the quality; empty measures none.
      texts: File of texts for the errors of hidden states and for speed; empty takes those of the examples, else words of the vocabulary.
      names: Names of the models in tables, in their order; empty takes the last parts of their paths.
      batch_sizes: Rows of the batches that are timed.
      lengths: Tokens of a row that is timed; empty takes 128, or the maximum of the model that takes least.
      rounds: Times that every model is timed with every shape.
      together: Most models that are loaded together while they are timed; the first model is one of them.
      num_texts: Texts that hidden states are compared on.
      precision: Type that the matrix products are computed in.
      attention: Attention implementation.
      batch_size: Most texts computed together where quality is measured.
      num_resamples: Draws of a bootstrap interval.
      loading: Whether each model is also loaded in a fresh process to see how far the process grows.
      offline: Never contact the hub.
      seed: Seed of made-up texts.
    """

    examples: str = ""
    texts: str = ""
    names: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    lengths: tuple[int, ...] = ()
    rounds: int = 20
    together: int = 4
    num_texts: int = 16
    precision: PrecisionName = "float32"
    attention: AttentionName = "auto"
    batch_size: int = 32
    num_resamples: int = 1000
    loading: bool = True
    offline: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in (("rounds", 1), ("together", 2), ("num_texts", 1), ("batch_size", 1), ("num_resamples", 1)):
            require_at_least("compare", field, getattr(self, field), least)
        for field in ("batch_sizes", "lengths"):
            self._require_sizes(field, getattr(self, field))
        require(bool(self.batch_sizes), "compare.batch_sizes is empty; name at least one, for example [1, 8, 32].")

    def _require_sizes(self, field: str, values: Sequence[int]) -> None:
        least = 3 if field == "lengths" else 1
        wrong = [value for value in values if value < least]
        require(not wrong, f"compare.{field} holds {wrong and wrong[0]}, but must hold numbers of at least {least}.")
        require(len(set(values)) == len(values), f"compare.{field} is {list(values)}, but names a number twice.")
