"""What GPTQ and plain rounding leave of a kernel, in flaxbert and in qwix: error of the outputs on the same inputs, and seconds.

    python -m benchmarks.rounding --size 384 --rows 4096 --json results/rounding.json

Inputs are correlated and of very different sizes, as those of encoders are. The error is the squared change of the outputs over the squared outputs.
"""

import argparse
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.runner import machine, write_json
from benchmarks.settings import root


def problem(size: int, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a kernel ``[size, size]`` and inputs ``[rows, size]``.

    Args:
      size: Width of both.
      num_rows: Inputs.
    """
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((size, size)) * np.logspace(0, -1.5, size)
    inputs = generator.standard_normal((num_rows, size)) @ mixing
    return (generator.standard_normal((size, size)) * 0.05).astype(np.float32), inputs.astype(np.float32)


def by_flaxbert(kernel: np.ndarray, inputs: np.ndarray, bits: int, group_size: int, rounding: Any) -> np.ndarray:
    """Returns the kernel after rounding by flaxbert.

    Args:
      kernel: The kernel.
      inputs: What it is multiplied by.
      bits: 8 or 4.
      group_size: Rows that share a scale; 0 for all.
      rounding: nearest or gptq.
    """
    from flaxbert.core.arrays import materialize
    from flaxbert.transforms import QuantizationSpec, quantize
    from flaxbert.transforms.quantize import QuantizationRule
    from flaxbert.transforms.statistics import InputStatistics

    moment = (inputs.T @ inputs / len(inputs)).astype(np.float64)
    seen = InputStatistics(
        len(inputs), inputs.min(axis=0), inputs.max(axis=0), np.abs(inputs).mean(axis=0), None, moment
    )
    rules = (QuantizationRule("layer.kernel", QuantizationSpec(bits, group_size, rounding=rounding)),)
    params, _ = quantize({"layer": {"kernel": kernel}}, rules, {"layer.kernel": seen})
    return np.asarray(materialize(params["layer"]["kernel"]))


def by_qwix(kernel: np.ndarray, inputs: np.ndarray, bits: int, group_size: int, rounding: str) -> np.ndarray:
    """Returns the kernel after rounding by qwix.

    Args:
      kernel: As for ``by_flaxbert``.
      inputs: The same.
      bits: The same.
      group_size: The same.
      rounding: The same.
    """
    import jax.numpy as jnp
    from qwix._src.core import qarray
    from qwix.contrib import gptq_core

    how = qarray.HowToQuantize(
        qtype=jnp.int8 if bits == 8 else jnp.int4,
        channelwise_axes=[0],
        tiled_axes={1: group_size} if group_size else {},
        calibration_method="absmax",
    )
    turned = jnp.asarray(kernel.T)
    if rounding == "nearest":
        stored = qarray.quantize(turned, how)
    else:
        stored, _ = gptq_core.quantize_weight(turned, jnp.asarray(inputs.T @ inputs / len(inputs)), how)
    return np.asarray(qarray.dequantize(stored)).T


def main() -> None:
    """Rounds, compares, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=384, help="width of the kernel")
    parser.add_argument("--rows", type=int, default=4096, help="inputs")
    parser.add_argument("--json", default=str(root() / "results" / "rounding.json"), help="file of the results")
    arguments = parser.parse_args()
    kernel, inputs = problem(arguments.size, arguments.rows)
    outputs = inputs.astype(np.float64) @ kernel
    peers: dict[str, Callable[..., np.ndarray]] = {"flaxbert": by_flaxbert, "qwix": by_qwix}
    versions = {name: importlib.metadata.version(name) for name in peers}
    rows = []
    print(f"{'peer':<18} {'bits':>4} {'rounding':<8} {'error':>10} {'seconds':>8}")
    for bits, group_size in ((8, 0), (4, 64)):
        for rounding in ("nearest", "gptq"):
            for name, peer in peers.items():
                started = time.perf_counter()
                rounded = peer(kernel, inputs, bits, group_size, rounding)
                seconds = time.perf_counter() - started
                change = inputs.astype(np.float64) @ rounded - outputs
                error = float(np.sum(np.square(change)) / np.sum(np.square(outputs)))
                rows.append(
                    {
                        "peer": name,
                        "bits": bits,
                        "rounding": rounding,
                        "error": error,
                        "seconds": seconds,
                        "version": versions[name],
                    }
                )
                print(
                    f"{name + ' ' + versions[name]:<18} {bits:>4} {rounding:<8} {error:>10.3g} {seconds:>8.2f}",
                    flush=True,
                )
    write_json(arguments.json, {"machine": machine(), "options": vars(arguments), "rows": rows})


if __name__ == "__main__":
    main()
