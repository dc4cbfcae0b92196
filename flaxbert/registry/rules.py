"""What a version must reach before an alias may move to it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from flaxbert.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class PromotionRule:
    """A condition on one metric.

    Attributes:
      metric: Name of the metric, as the version has it.
      minimum: What it reaches at least (at most, for metrics that are better when lower); None for any value.
      max_loss: By how much it may be worse than that of the version that has the alias now; None for any.
      lower_is_better: Whether lower values are better.
    """

    metric: str
    minimum: float | None = None
    max_loss: float | None = None
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        if not self.metric:
            raise ConfigError("A rule of promotion needs the name of a metric.")
        if self.minimum is None and self.max_loss is None:
            raise ConfigError(
                f"A rule on {self.metric} needs a value that it reaches, or how much worse than now it may be (for example 0)."
            )
        for name in ("minimum", "max_loss"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"The {name} of a rule is {value}, but must be a number.")
        if self.max_loss is not None and self.max_loss < 0:
            raise ConfigError(f"The max_loss of a rule is {self.max_loss}, but a loss is at least 0.")

    def refusal(self, candidate: Mapping[str, float], incumbent: Mapping[str, float] | None) -> str:
        """Returns why a version may not have the alias, or an empty text where it may.

        Args:
          candidate: Its metrics.
          incumbent: Metrics of the version that has the alias now; None for none.
        """
        value = candidate.get(self.metric)
        if value is None or not math.isfinite(value):
            known = ", ".join(sorted(candidate)) or "none"
            return f"the version has no metric {self.metric} (it has {known})"
        sign = -1.0 if self.lower_is_better else 1.0
        if self.minimum is not None and sign * value < sign * self.minimum:
            return f"its {self.metric} is {value:.6g}, but must be at {'most' if self.lower_is_better else 'least'} {self.minimum:g}"
        if self.max_loss is None or incumbent is None:
            return ""
        now = incumbent.get(self.metric)
        if now is not None and math.isfinite(now) and sign * (now - value) > self.max_loss:
            return f"its {self.metric} is {value:.6g}, that of the version in use {now:.6g}; it may be worse by at most {self.max_loss:g}"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Returns the rule as a JSON object."""
        return dataclasses.asdict(self)
