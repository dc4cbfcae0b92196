"""What ``flaxbert doctor`` looks at: each check is a finding with a verdict and what to do."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Mapping

from flaxbert.core import runtime
from flaxbert.core.backend_flags import flag_states
from flaxbert.core.units import format_bytes

REQUIRED = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "safetensors",
    "tokenizers",
    "transformers",
    "datasets",
)
LEAST_DISK_BYTES = 2 * 2**30
LEAST_MEMORY_BYTES = 2 * 2**30


@dataclasses.dataclass(frozen=True)
class Finding:
    """One checked fact.

    Attributes:
      name: What was checked.
      good: Whether it is as it should be.
      text: What was found and, where it is not good, what to do.
    """

    name: str
    good: bool
    text: str


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_versions() -> list[Finding]:
    versions = {package: _version(package) for package in REQUIRED}
    missing = [package for package, version in versions.items() if version is None]
    text = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    good = sys.version_info >= (3, 11)
    advice = "" if good else "; flaxbert needs Python 3.11 or newer"
    return [
        Finding("python", good, f"{platform.python_version()} on {platform.platform()}{advice}"),
        Finding("packages", not missing, f"{text}; missing: {', '.join(missing)}" if missing else text),
    ]


def _check_devices() -> list[Finding]:
    import jax

    devices = jax.devices()
    kinds = ", ".join(f"{device.id}: {device.device_kind}" for device in devices[:8])
    findings = [Finding("devices", True, f"{len(devices)} x {devices[0].platform} ({kinds})")]
    if devices[0].platform == "cpu":
        for plugin, extra in (("libtpu", "tpu"), ("jax_cuda12_plugin", "cuda"), ("jax_cuda13_plugin", "cuda")):
            if importlib.util.find_spec(plugin) is not None and os.environ.get("JAX_PLATFORMS") != "cpu":
                findings.append(
                    Finding("accelerator", False, f"{plugin} ({extra} extra) is installed, but JAX found only the CPU")
                )
    limit = runtime.device_memory_limit_bytes(devices[0])
    findings.append(
        Finding("memory", limit >= LEAST_MEMORY_BYTES, f"{format_bytes(limit)} for each device before the limit")
    )
    return findings


def _check_numerics(configured: Mapping[str, str]) -> list[Finding]:
    import jax
    import jax.numpy as jnp

    right = runtime.check_reduction_sum()
    advice = "" if right else f"; set XLA_FLAGS={runtime.WRONG_SUM_CURE} before the process starts, or update jaxlib"
    findings = [
        Finding(
            "compiled sums",
            right,
            f"{'right' if right else 'WRONG'} (cure: {configured.get('wrong_sum_cure', 'unknown')}){advice}",
        )
    ]
    for name, operand, accumulator in (
        ("bfloat16 products", jnp.bfloat16, jnp.float32),
        ("int8 products", jnp.int8, jnp.int32),
    ):
        left = jax.random.randint(jax.random.key(0), (64, 96), -8, 8, jnp.int32).astype(operand)
        product = jax.jit(lambda x, kind=accumulator: jnp.matmul(x, x.T, preferred_element_type=kind))(left)
        exact = left.astype(jnp.int32) @ left.astype(jnp.int32).T
        good = bool((product.astype(jnp.int32) == exact).all())
        findings.append(Finding(name, good, "exact" if good else "WRONG; do not use this precision on this device"))
    return findings


def _check_flags() -> list[Finding]:
    """Shows the compiler flags of every backend that may start: what is set, and why."""
    findings = []
    for entry in flag_states():
        flag = entry.flag
        findings.append(
            Finding(
                f"{entry.backend.platform} flag",
                True,
                f"{flag.text} ({entry.backend.variable}): {entry.state}; {flag.reason} [{flag.source}]",
            )
        )
    return findings


def _hub_cache() -> pathlib.Path:
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME")
    return pathlib.Path(chosen).absolute() if chosen else pathlib.Path.home() / ".cache" / "huggingface"


def _check_folders(configured: Mapping[str, str]) -> list[Finding]:
    cache = configured.get("compilation_cache", "off")
    findings = [Finding("compile cache", True, cache)]
    for name, folder in (("disk here", pathlib.Path.cwd()), ("hub cache", _hub_cache())):
        existing = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(existing).free
        findings.append(Finding(name, free >= LEAST_DISK_BYTES, f"{format_bytes(free)} free"))
    return findings


def diagnose(configured: Mapping[str, str], quick: bool = False) -> list[Finding]:
    """Checks the machine.

    Args:
      configured: What ``runtime.configure`` did.
      quick: Whether to leave out the checks that compute.

    Returns:
      The findings in the order in which a user would look at them.
    """
    findings = [*_check_versions(), *_check_devices(), *_check_flags()]
    if not quick:
        findings.extend(_check_numerics(configured))
    return [*findings, *_check_folders(configured)]
