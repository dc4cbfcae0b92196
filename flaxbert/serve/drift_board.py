"""The monitors of all versions that are served: fed by requests, asked by Prometheus and operators, told to the log."""

import logging
import random
import time
from collections.abc import Iterator
from typing import Any, Final

from flaxbert.config import DriftConfig
from flaxbert.serve.drift import Judgement, Monitor
from flaxbert.serve.drift_measures import CONFIDENCE, LABELS, SCRIPT, UNKNOWN
from flaxbert.serve.drift_windows import Sketch, sketch_of
from flaxbert.serve.loading import Served
from flaxbert.serve.operations.classification import watched_labels
from flaxbert.serve.operations.work import Work

_LOG = logging.getLogger("flaxbert.serve.drift")

Version = tuple[str, str]
"""Name of a model and its version."""

_MOST_SERIES: Final = 50
"""Labels of a model that metrics name; the others are one, so that a model of thousands does not fill Prometheus."""

_OTHERS: Final = "(others)"

_DRAWS = random.Random()
"""Draws of this module alone: the generator that all modules share belongs to the program around the server."""


class Sampler:
    """Takes all requests where they are few, and a random part of them where they are many.

    Args:
      most_per_second: About how many it takes in a second.
    """

    def __init__(self, most_per_second: int) -> None:
        self._most = most_per_second
        self._second = 0
        self._count = 0
        self._share = 1.0

    def take(self, now: float) -> bool:
        """Returns whether a request is looked at.

        Args:
          now: Its time in seconds.
        """
        second = int(now)
        if second != self._second:
            before = self._count if second == self._second + 1 else 0
            self._share = min(1.0, self._most / max(1, before))
            self._second, self._count = second, 0
        self._count += 1
        return self._share >= 1.0 or _DRAWS.random() < self._share


class DriftBoard:
    """All monitors.

    Args:
      config: What they are told.
    """

    def __init__(self, config: DriftConfig) -> None:
        self.config = config
        self._monitors: dict[Version, Monitor] = {}
        self._users: dict[Version, int] = {}
        self._alerts: set[tuple[Version, str]] = set()
        self._sampler = Sampler(config.max_per_second)
        self._failed = False

    def add(self, served: Served) -> None:
        """Begins to watch a version, unless it is watched already in another role.

        Args:
          served: The version.
        """
        if not self.config.enabled:
            return
        key = (served.name, served.version)
        self._users[key] = self._users.get(key, 0) + 1
        if key not in self._monitors:
            data = served.record.get("data")
            self._monitors[key] = Monitor(
                self.config, data if isinstance(data, dict) else {}, watched_labels(served.subject)
            )

    def remove(self, served: Served) -> None:
        """Forgets a version that left its last role.

        Args:
          served: The version.
        """
        key = (served.name, served.version)
        left = self._users.pop(key, 1) - 1
        if left:
            self._users[key] = left
            return
        self._monitors.pop(key, None)
        self._alerts = {alert for alert in self._alerts if alert[0] != key}

    def takes(self, served: Served) -> bool:
        """Returns whether a request is looked at.

        Args:
          served: The version that answers it.
        """
        return (served.name, served.version) in self._monitors and self._sampler.take(time.monotonic())

    def sketch(self, served: Served, work: Work) -> Sketch | None:
        """Looks at the inputs of a request; called off the event loop.

        Args:
          served: The version that answers it.
          work: The request.

        Returns:
          What is kept of it, or None where that failed.
        """
        try:
            unknown = getattr(served.subject.model.tokenizer, "unk_token_id", None)
            return sketch_of(work.rows, work.texts, unknown)
        except Exception:  # noqa: BLE001  who watches must not break what is watched
            self._note_failure()
            return None

    def observe(self, served: Served, sketch: Sketch | None, work: Work, answer: Any) -> None:
        """Takes a request that was answered.

        Args:
          served: The version that answered it.
          sketch: Its inputs, or None.
          work: The request.
          answer: Its answer.
        """
        monitor = self._monitors.get((served.name, served.version))
        if monitor is None or sketch is None:
            return
        try:
            outcome = None if work.outcome is None else work.outcome(answer)
            monitor.observe(time.monotonic(), sketch, outcome)
        except Exception:  # noqa: BLE001  see sketch
            self._note_failure()

    def _note_failure(self) -> None:
        if not self._failed:
            self._failed = True
            _LOG.exception("a request could not be looked at for drift; this is said once")

    def judge(self) -> dict[Version, list[Judgement]]:
        """Returns the measures of all versions, and logs what began and ended to alert."""
        now = time.monotonic()
        found = {key: monitor.judge(now) for key, monitor in self._monitors.items()}
        for key, judgements in found.items():
            for judgement in judgements:
                self._note(key, judgement)
        return found

    def _note(self, key: Version, judgement: Judgement) -> None:
        alert, (model, version), what = (key, judgement.what), key, judgement.what
        if judgement.alert == (alert in self._alerts):
            return
        if judgement.alert:
            self._alerts.add(alert)
            _LOG.warning(
                "%s: version %s drifts: %s is off by %.3g (more than %.3g, %s) in %d examples",
                *(model, version, what, judgement.value, max(judgement.threshold, judgement.chance)),
                f"reference: {judgement.origin}",
                judgement.num_examples,
            )
        else:
            self._alerts.discard(alert)
            _LOG.info("%s: version %s: %s no longer drifts", model, version, what)

    def collect(self) -> Iterator[Any]:
        """Yields the metrics of all versions, as Prometheus asks for them."""
        from prometheus_client.core import GaugeMetricFamily

        def family(name: str, text: str, *labels: str) -> Any:
            return GaugeMetricFamily(name, text, labels=("model", "version", *labels))

        drift = family("flaxbert_drift", "Stability index or difference from the reference", "what")
        alerts = family("flaxbert_drift_alert", "1 where the drift is over its limit", "what")
        counts = family("flaxbert_drift_examples", "Examples that the drift rests on", "what")
        unknown = family("flaxbert_unknown_token_rate", "Share of tokens that the vocabulary does not know")
        confidence = family("flaxbert_confidence_mean", "Mean score of the best label")
        labels = family("flaxbert_label_share", "Share of a label among the answers", "label")
        scripts = family("flaxbert_script_share", "Share of a script among the letters of texts", "script")
        single = {UNKNOWN: unknown, CONFIDENCE: confidence}
        several = {LABELS: labels, SCRIPT: scripts}
        for key, judgements in self.judge().items():
            for judgement in judgements:
                what = (*key, judgement.what)
                alerts.add_metric(what, float(judgement.alert))
                counts.add_metric(what, float(judgement.num_examples))
                if judgement.value is not None:
                    drift.add_metric(what, judgement.value)
                if judgement.observed is not None and judgement.what in single:
                    single[judgement.what].add_metric(key, judgement.observed)
                elif judgement.observed is not None and judgement.what in several:
                    for name, share in _largest(judgement.observed):
                        several[judgement.what].add_metric((*key, name), share)
        yield from (drift, alerts, counts, unknown, confidence, labels, scripts)


def _largest(shares: dict[str, float]) -> list[tuple[str, float]]:
    ordered = sorted(shares.items(), key=lambda entry: -entry[1])
    left = sum(share for _, share in ordered[_MOST_SERIES:])
    return ordered[:_MOST_SERIES] + ([(_OTHERS, left)] if len(ordered) > _MOST_SERIES else [])
