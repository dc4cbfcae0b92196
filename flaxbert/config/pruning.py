"""What is pruned: in one shot, or in the course of training."""

import dataclasses
import re
from typing import Literal

from flaxbert.config.checks import require, require_at_least
from flaxbert.errors import ConfigError

Importance = Literal["magnitude", "gradient", "second_moment", "random"]


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
      importance: What decides: magnitude; gradient, the change of the loss on labelled examples (heads and neurons; weights go by magnitude); second_moment, what single weights give on the texts of calibration, where those that stay make up for the others; or random, the baseline.
      calibration: File of texts such as the model will see, for second_moment.
      num_examples: Examples drawn from it; 0 takes all.
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
    calibration: str = ""
    num_examples: int = 256
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
        by_moment, single = self.importance == "second_moment", bool(self.pattern) or self.rate is not None
        require(
            not by_moment or (single and not self.removes_units and not self.block and self.scope == "layer"),
            "--importance second_moment ranks single weights within each matrix; it goes with --pattern or --rate alone.",
        )
        require(
            by_moment == bool(self.calibration),
            "--importance second_moment and --calibration, a file of texts such as the model will see, belong together.",
        )
        require_at_least("prune", "num_examples", self.num_examples, 0)
        require(
            self.scope == "layer" or self.removes_units or self.rate is not None,
            "--scope global needs --rate, --heads or --neurons; a pattern is chosen group by group.",
        )

    @property
    def removes_units(self) -> bool:
        """Whether heads or neurons go."""
        return bool(self.heads or self.heads_kept or self.neurons or self.neurons_kept)


PruneMethod = Literal["none", "magnitude", "movement", "soft_movement"]


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """What is pruned in the course of training.

    Attributes:
      method: none; magnitude prunes the smallest weights, more and more of them (Zhu and Gupta, 2017); movement prunes those that training moves towards zero (Sanh, Wolf and Rush, 2020); soft_movement prunes by a threshold instead of a share, with a penalty on scores.
      rate: Share of weights (or blocks) that are zero at the end, in (0, 1); not for soft_movement, whose share follows from threshold and penalty.
      pattern: For magnitude, N:M instead of a rate: the weights kept of each group of neighbours along the inputs, for example 2:4.
      block: What goes together: HEIGHTxWIDTH weights such as 32x32, or units, which are whole heads and feed-forward neurons. Empty: single weights.
      scope: Rank within each matrix (leaf), or over all together (global).
      begin_rate: Share of the steps that pass before the first weight is pruned, in [0, 1).
      end_rate: Share of the steps after which the final masks stand; the rest of training leaves them alone.
      every: Steps between two changes of the masks; 0 takes a hundredth of those from begin to end.
      threshold: For soft_movement: sigmoid of a score from which a weight stays, at the end, in (0, 0.5].
      penalty: For soft_movement: weight of the mean sigmoid of all scores in the loss.
      score_factor: For soft_movement: how much faster scores move than weights.
      keep: Regular expressions of leaf names that stay dense, for example [encoder.layers.0.*].
      shrink: Whether heads and neurons that give nothing are taken out at the end, so that matrices get smaller.
      even: Take out as many in all layers, so that layers can be scanned and stock transformers can have them where it can.
    """

    method: PruneMethod = "none"
    rate: float = 0.5
    pattern: str = ""
    block: str = ""
    scope: Literal["leaf", "global"] = "leaf"
    begin_rate: float = 0.1
    end_rate: float = 0.7
    every: int = 0
    threshold: float = 0.1
    penalty: float = 100.0
    score_factor: float = 300.0
    keep: tuple[str, ...] = ()
    shrink: bool = False
    even: bool = False

    def __post_init__(self) -> None:
        require(0.0 < self.rate < 1.0, f"prune.rate is {self.rate}, but the share that is pruned lies in (0, 1).")
        require(
            0.0 <= self.begin_rate < self.end_rate <= 1.0,
            f"prune.begin_rate {self.begin_rate} and prune.end_rate {self.end_rate} must be rising shares of the steps in [0, 1].",
        )
        require(
            0.0 < self.threshold <= 0.5,
            f"prune.threshold is {self.threshold}, but must lie in (0, 0.5]: all scores start at a sigmoid of 0.5.",
        )
        require_at_least("prune", "every", self.every, 0)
        require_at_least("prune", "penalty", self.penalty, 0)
        require(self.score_factor > 0, f"prune.score_factor is {self.score_factor}, but must be above 0.")
        require(
            not self.pattern or self.method in ("none", "magnitude"),
            f"prune.pattern {self.pattern} goes with prune.method magnitude, not {self.method}.",
        )
        require(
            not (self.pattern and (self.block or self.scope == "global")),
            f"prune.pattern {self.pattern} is chosen group by group; leave prune.block empty and prune.scope leaf.",
        )
        self.group()
        self.block_size()

    @property
    def is_on(self) -> bool:
        """Whether anything is pruned."""
        return self.method != "none"

    def group(self) -> tuple[int, int] | None:
        """Returns N and M of the pattern, or None without one.

        Raises:
          ConfigError: The pattern is no N:M.
        """
        if not self.pattern:
            return None
        match = re.fullmatch(r"(\d+):(\d+)", self.pattern)
        kept, size = (int(match[1]), int(match[2])) if match else (0, 0)
        require(1 <= kept < size, f"prune.pattern is '{self.pattern}', but must be N:M with 1 <= N < M, such as 2:4.")
        return kept, size

    def block_size(self) -> tuple[int, int] | None:
        """Returns height and width of a block, (1, 1) for single weights, or None for heads and neurons.

        Raises:
          ConfigError: The block is malformed.
        """
        if self.block == "units":
            return None
        match = re.fullmatch(r"(\d+)x(\d+)", self.block or "1x1")
        size = (int(match[1]), int(match[2])) if match else (0, 0)
        require(min(size) > 0, f"prune.block is '{self.block}', but must be units or HEIGHTxWIDTH such as 32x32.")
        return size
