"""What is pruned, in one shot."""

import dataclasses
from typing import Literal

from flaxbert.config.checks import require, require_at_least
from flaxbert.errors import ConfigError

Importance = Literal["magnitude", "gradient", "random"]


@dataclasses.dataclass(frozen=True)
class OneShotConfig:
    """What ``flaxbert prune`` removes from a model at once.

    Attributes:
      heads: Share of attention heads to remove, in [0, 1).
      heads_kept: Instead, heads that each layer keeps: one number for all layers, or a list with one for each, such as [8,8,4].
      neurons: Share of feed-forward neurons to remove, in [0, 1).
      neurons_kept: Instead, neurons that each layer keeps, likewise.
      multiple_of: Numbers of kept neurons are rounded up to a multiple of it, as matrix units like.
      layers: Layers to keep: numbers such as 0,2,4; first:6, which drops the last; last:6; or spread:6, every other of twelve. Empty keeps all.
      vocabulary: File of raw text, or a list such as [a.txt,b.txt]: its tokens are kept, with special tokens and single characters, so that any text still has tokens. Empty keeps all.
      min_count: Least number of times that a token must occur in the texts of vocabulary.
      pattern: Weights kept of each group of neighbours along the inputs, N:M, for example 2:4.
      rate: Share of weights that become zero, in [0, 1), chosen one by one or by block.
      block: Height and width of blocks of weights that go together, for example 4x4; needs a rate.
      keep: Regular expressions of leaf names whose single weights stay, for example [encoder.layers.0.*].
      scope: Rank within each layer (weights: within each matrix), or over all together (global).
      importance: What decides: magnitude; gradient, the change of the loss on labelled examples (heads and neurons; weights go by magnitude); or random, the baseline.
      shrink: Whether removed heads and neurons are taken out, so that matrices get smaller; false only sets them to zero, in shapes that stock transformers runs.
      even: Keep as many heads and neurons in all layers, so that layers can be scanned and stock transformers can have them where it can.
      seed: Seed of random choices.
    """

    heads: float = 0.0
    heads_kept: int | tuple[int, ...] = ()
    neurons: float = 0.0
    neurons_kept: int | tuple[int, ...] = ()
    multiple_of: int = 1
    layers: str = ""
    vocabulary: tuple[str, ...] | str = ()
    min_count: int = 1
    pattern: str = ""
    rate: float | None = None
    block: str = ""
    keep: tuple[str, ...] | str = ()
    scope: Literal["layer", "global"] = "layer"
    importance: Importance = "magnitude"
    shrink: bool = True
    even: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("heads_kept", "neurons_kept", "vocabulary", "keep"):
            value = getattr(self, field)
            object.__setattr__(
                self, field, tuple(value) if isinstance(value, tuple | list) else (value,) if value != "" else ()
            )
        require_at_least("prune", "min_count", self.min_count, 1)
        require_at_least("prune", "multiple_of", self.multiple_of, 1)
        for field in ("heads", "neurons"):
            rate = getattr(self, field)
            require(
                0.0 <= rate < 1.0,
                f"--{field} is {rate}, but the share that is removed lies in [0, 1): something must stay.",
            )
        require(
            not self.keep or bool(self.pattern) or self.rate is not None,
            f"--keep {self.keep} names matrices whose single weights stay; it needs --pattern or --rate.",
        )
        if self.pattern and self.rate is not None:
            raise ConfigError(f"--pattern {self.pattern} and --rate {self.rate} exclude each other; give one of them.")
        require(
            not self.block or self.rate is not None, f"--block {self.block} needs --rate, the share of blocks that go."
        )
        require(
            self.importance != "gradient" or self.removes_units,
            "--importance gradient ranks heads and neurons; name a share of them to remove (--heads, --neurons).",
        )
        require(
            self.scope == "layer" or self.removes_units or self.rate is not None,
            "--scope global needs --rate, --heads or --neurons; a pattern is chosen group by group.",
        )

    @property
    def removes_units(self) -> bool:
        """Whether heads or neurons go."""
        return bool(self.heads or self.heads_kept or self.neurons or self.neurons_kept)
