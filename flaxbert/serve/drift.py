"""Whether what a version is asked, and what it answers, differs from what it was trained on.

Pure bookkeeping: no clock, no log, no model. ``drift_board`` holds a monitor for every version that is served.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from flaxbert.config import DriftConfig
from flaxbert.data.scripts import SCRIPTS
from flaxbert.serve.drift_measures import FIRST, LABELS, MEASURES, UNKNOWN, Expectation, expectations_of
from flaxbert.serve.drift_windows import Outcome, Ring, Sketch

_RELEASE: Final = 0.8
"""An alert ends below this part of its limit, so that it does not come and go around it."""

_MOST_LABELS: Final = 1000


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One measure of one version.

    Attributes:
      what: What is measured.
      value: Population stability index (lengths, scripts, labels), or what was measured minus the reference; None before there is a reference or an example.
      observed: What was measured.
      reference: What it is compared with.
      origin: Where that comes from; empty while it is still learned.
      threshold: As configured.
      chance: What chance alone could give with so few examples.
      num_examples: Examples that the judgement rests on.
      alert: Whether the value is over both, on enough examples.
    """

    what: str
    value: float | None
    observed: Any
    reference: Any
    origin: str
    threshold: float
    chance: float
    num_examples: int
    alert: bool

    def to_json(self) -> dict[str, Any]:
        """Returns it as a JSON object."""
        return dataclasses.asdict(self)


class Monitor:
    """Watches one version.

    Args:
      config: Sizes of windows, thresholds.
      data: Fingerprint of its training examples; empty where there is none.
      label_names: Labels that it gives to texts; none where it labels no texts.
    """

    def __init__(self, config: DriftConfig, data: Mapping[str, Any], label_names: Sequence[str] = ()) -> None:
        self.config = config
        self.expected = expectations_of(data)
        if not label_names:
            self.expected.pop(LABELS, None)
        self._numbers = {name: number for number, name in enumerate(label_names[:_MOST_LABELS])}
        self._alerting: set[str] = set()
        size = config.window_examples
        self._rings = {
            "inputs": Ring(size, lengths=(np.int32, ()), unknown=(np.int32, ())),
            "texts": Ring(size, scripts=(np.float32, (len(SCRIPTS),))),
            "labels": Ring(size, labels=(np.int32, ())),
            "answers": Ring(size, confidences=(np.float32, ())),
        }

    def observe(self, now: float, sketch: Sketch, outcome: Outcome | None) -> None:
        """Takes a request.

        Args:
          now: Its time.
          sketch: Its inputs.
          outcome: Its answer; None where nothing of it tells how sure the model is.
        """
        if len(sketch.lengths):
            self._rings["inputs"].add(now, lengths=sketch.lengths, unknown=sketch.unknown)
        if len(sketch.scripts):
            self._rings["texts"].add(now, scripts=sketch.scripts)
        if outcome is not None:
            numbers = [self._numbers[label] for label in outcome.labels if label in self._numbers]
            if numbers:
                self._rings["labels"].add(now, labels=numbers)
            if outcome.confidences:
                self._rings["answers"].add(now, confidences=outcome.confidences)
        if len(self.expected) < len(MEASURES):
            self._learn()

    def _learn(self) -> None:
        """Takes the first examples as the reference of measures that have none."""
        for what, (ring, _, summarize) in MEASURES.items():
            if what not in self.expected and self._rings[ring].num_seen >= self.config.reference_examples:
                window = self._rings[ring].since()
                value = summarize(window, tuple(self._numbers))
                self.expected[what] = Expectation(value, len(next(iter(window.values()))), FIRST)

    def judge(self, now: float) -> list[Judgement]:
        """Returns all measures of which anything was seen or is expected.

        Args:
          now: The time.
        """
        since = now - 60.0 * self.config.window_minutes
        windows = {name: ring.since(since) for name, ring in self._rings.items()}
        seen = [what for what, (ring, _, _) in MEASURES.items() if self._rings[ring].num_seen or what in self.expected]
        return [self._judge(what, windows[MEASURES[what][0]]) for what in seen]

    def _judge(self, what: str, window: Mapping[str, np.ndarray]) -> Judgement:
        _, compare, summarize = MEASURES[what]
        threshold, expected = self.config.threshold(what), self.expected.get(what)
        num_examples, names = len(next(iter(window.values()))), tuple(self._numbers)
        value, observed, chance = None, None, 0.0
        if num_examples and expected is not None:
            value, observed, chance = compare(window, expected, names)
        elif num_examples:
            observed = summarize(window, names)
        limit = max(threshold, chance) * (_RELEASE if what in self._alerting else 1.0)
        size = 0.0 if value is None else value if what == UNKNOWN else abs(value)  # fewer unknown tokens harm nobody
        alert = num_examples >= self.config.min_examples and size > limit
        (self._alerting.add if alert else self._alerting.discard)(what)
        return Judgement(
            what,
            value,
            observed,
            None if expected is None else expected.value,
            "" if expected is None else expected.origin,
            threshold,
            chance,
            num_examples,
            alert,
        )
