"""What the processor can do, as far as the system says."""

import pathlib

_PROCESSOR_FILE = pathlib.Path("/proc/cpuinfo")


def processor_features() -> str:
    """Returns what Linux says that the processor can do, in one line; empty where it says nothing."""
    try:
        lines = _PROCESSOR_FILE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
