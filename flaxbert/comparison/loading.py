"""How far a fresh process grows when it loads a model: ``python -m flaxbert.comparison.loading FOLDER``."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

from flaxbert.errors import WeightsError

MOST_SECONDS = 1800.0
"""Time after which a process that loads a model is taken for hanging."""


@dataclasses.dataclass(frozen=True)
class Loading:
    """What loading a model in a fresh process cost.

    Attributes:
      resident_bytes: Memory that the process holds more than before.
      peak_bytes: The same at its highest.
      seconds: Time from the first byte read to the last array made.
    """

    resident_bytes: int
    peak_bytes: int
    seconds: float


def measure_loading(folder: pathlib.Path) -> Loading:
    """Loads a model in a process of its own, on its CPU, and returns how far the process grew.

    Args:
      folder: A model folder.

    Returns:
      Growth and time.

    Raises:
      WeightsError: The process ended with an error; quotes its last line.
    """
    command = [sys.executable, "-m", "flaxbert.comparison.loading", str(folder)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it ended without a word"]
        raise WeightsError(f"{folder} could not be loaded in a fresh process: {lines[-1]}")
    return Loading(**json.loads(done.stdout.splitlines()[-1]))


def _report_loading(folder: str) -> None:
    """Prints the growth of this process as a line of JSON."""
    import gc
    import resource
    import time

    import psutil

    from flaxbert.core.runtime import configure

    configure()
    import jax
    import jax.numpy as jnp

    from flaxbert.model import load
    from flaxbert.weights.folder import read_config
    from flaxbert.weights.tokenizer import load_tokenizer

    # Backend and tokenizer, with the libraries that they import, are there before the count begins.
    jax.block_until_ready(jnp.zeros(8) + 1)
    load_tokenizer(pathlib.Path(folder), read_config(folder))
    gc.collect()
    process, unit = psutil.Process(), 1 if sys.platform == "darwin" else 1024
    before, started = process.memory_info().rss, time.perf_counter()
    peak_before = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    model = load(folder)
    jax.block_until_ready(model.params)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    gc.collect()
    grown = process.memory_info().rss - before
    print(json.dumps({"resident_bytes": grown, "peak_bytes": max(peak - peak_before, grown), "seconds": seconds}))


if __name__ == "__main__":
    _report_loading(sys.argv[1])
