"""The process around the computation: backend flags, compile cache, several hosts, devices and their memory.

Nothing here runs at import. Commands call ``configure`` before the first array is made.
"""

import importlib.metadata
import os
import pathlib
import stat
import warnings
from typing import Any

import psutil

from flaxbert.config import MeshConfig
from flaxbert.core.backend_flags import CPU, WRONG_SUM_FLAG, flag_states, set_backend_flags
from flaxbert.core.roll_call import roll_call
from flaxbert.errors import ConfigError, MeshError

WRONG_SUM_VERSIONS = ("0.10.2",)
"""jaxlib versions whose CPU backend returns wrong sums unless told otherwise (jax issue 39103)."""

WRONG_SUM_CURE = f"{WRONG_SUM_FLAG}=individual_dot"
CACHE_FOLDER_VARIABLE = "FLAXBERT_COMPILATION_CACHE"
KEEP_PAGES_VARIABLE = "FLAXBERT_KEEP_PAGES"
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
SUM_CHECK_ROWS = 32_769
"""From this number of float32 rows on the wrong sum shows."""


def backend_started() -> bool:
    """Returns whether a JAX backend already runs in this process, without starting one."""
    import sys

    bridge = sys.modules.get("jax._src.xla_bridge")
    return bool(bridge is not None and getattr(bridge, "_backends", {}))


def cure_wrong_sums() -> str:
    """Adds the flag that cures wrong CPU sums to ``XLA_FLAGS``, for the jaxlib versions that need it.

    Never over the user's own choice of that flag, and never for other versions: a flag that a version does not know
    ends the process.

    Returns:
      ``"not needed"``, ``"set by user"``, ``"set"`` or ``"too late"`` (a backend already runs; a warning says so).
    """
    if importlib.metadata.version("jaxlib") not in WRONG_SUM_VERSIONS:
        return "not needed"
    flags = os.environ.get("XLA_FLAGS", "")
    if WRONG_SUM_FLAG in flags:
        return "set by user"
    if backend_started():
        if not check_reduction_sum():
            warnings.warn(
                f"This jaxlib returns wrong sums on CPU and its backend was started before flaxbert could set "
                f"XLA_FLAGS={WRONG_SUM_CURE}. Set it in the environment, or import flaxbert and call "
                "flaxbert.configure() before the first JAX array.",
                RuntimeWarning,
                stacklevel=3,
            )
        return "too late"
    os.environ["XLA_FLAGS"] = f"{flags} {WRONG_SUM_CURE}".strip()
    return "set"


def prepare_backends() -> str:
    """Adds the flags of ``core.backend_flags`` for the backends that may start.

    Returns:
      ``"set"``, ``"not needed"`` where none has any, or ``"too late"`` (a backend already runs and an accelerator lacks flags).
    """
    if backend_started():
        missing = [entry for entry in flag_states() if entry.state == "not set" and entry.backend is not CPU]
        return "too late" if missing else "not needed"
    entries = [entry for entry in set_backend_flags() if entry.flag.name != WRONG_SUM_FLAG]
    return "set" if any(entry.state == "set" for entry in entries) else "not needed"


def check_reduction_sum() -> bool:
    """Returns whether a compiled, vectorised matrix-vector product followed by a sum is right on the default device.

    Row ``i`` is ``(i, 0, 0)``, so the squared length of the last of 32769 rows is ``32768**2 = 1073741824``; jaxlib
    0.10.2 returns less on CPU without the cure (jax issue 39103).
    """
    import jax
    import jax.numpy as jnp

    numbers = jnp.arange(SUM_CHECK_ROWS, dtype=jnp.float32)
    rows = jnp.stack((numbers, jnp.zeros_like(numbers), jnp.zeros_like(numbers)), axis=1)
    matrix = jnp.eye(3, dtype=jnp.float32)
    lengths = jax.jit(jax.vmap(lambda row: jnp.sum(jnp.square(matrix @ row))))(rows)
    return float(lengths[-1]) == float(SUM_CHECK_ROWS - 1) ** 2


def compilation_cache_folder() -> pathlib.Path | None:
    """Returns the folder of the persistent compile cache, made private to the user; None where it is switched off.

    Whoever can write into the cache can run code in every process that reads it, so the folder must belong to the user
    and be closed to all others.

    Raises:
      ConfigError: The folder belongs to another user, is a link, or can be written by others and can not be closed.
    """
    chosen = os.environ.get(CACHE_FOLDER_VARIABLE)
    if chosen == "":
        return None
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(chosen) if chosen else pathlib.Path(base) / "flaxbert" / "compilation"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ConfigError(
            f"The compile cache {folder} is not a folder of this user; remove it or point {CACHE_FOLDER_VARIABLE} "
            "elsewhere (empty switches the cache off)."
        )
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


def keep_memory_pages() -> str:
    """Tells the C library to keep freed memory instead of giving it back to the system.

    XLA:CPU takes the scratch of every execution anew from ``malloc``; large blocks are then mapped, zeroed and unmapped by
    the system each time, which costs up to a third of an inference step. Only for glibc, and only where no accelerator is
    asked for; ``FLAXBERT_KEEP_PAGES=0`` leaves the C library as it is.

    Returns:
      ``"set"``, ``"off"`` or ``"not available"``.
    """
    import ctypes

    if os.environ.get(KEEP_PAGES_VARIABLE) == "0":
        return "off"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return "not available"
    return "set" if mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1) else "not available"


def release_memory() -> None:
    """Gives memory that nothing uses any more back to the system, which ``keep_memory_pages`` keeps the C library from doing by itself."""
    import ctypes
    import gc

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def configure(use_compilation_cache: bool = True) -> dict[str, str]:
    """Prepares JAX for flaxbert; call it before the first array is made. Calling it again changes nothing.

    Args:
      use_compilation_cache: Whether compiled programs are kept between processes.

    Returns:
      What was done, for ``flaxbert doctor``: the state of the CPU cure, the flags of backends and the cache folder.

    Raises:
      ConfigError: The cache folder is not safe to use.
    """
    done = {
        "wrong_sum_cure": cure_wrong_sums(),
        "backend_flags": prepare_backends(),
        "kept_pages": keep_memory_pages(),
        "compilation_cache": "off",
    }
    if use_compilation_cache:
        import jax

        folder = compilation_cache_folder()
        if folder is not None and not jax.config.values["jax_compilation_cache_dir"]:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
        done["compilation_cache"] = str(jax.config.values["jax_compilation_cache_dir"] or "off")
    return done


JOIN_VARIABLE = "FLAXBERT_JOIN"
"""Set to 1, it says that this process is one of several, which JAX can find (a Cloud TPU VM tells it nothing else)."""

_CLUSTER_VARIABLES = (
    "SLURM_NTASKS",
    "OMPI_COMM_WORLD_SIZE",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "TPU_WORKER_HOSTNAMES",
    "JAX_COORDINATOR_ADDRESS",
)


def _cluster_size() -> int:
    for variable in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES"):
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return len([name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name])


def _in_cluster() -> bool:
    joined = os.environ.get(JOIN_VARIABLE)
    if joined not in {None, "", "1"}:
        raise MeshError(
            f"{JOIN_VARIABLE} is {joined!r}; set it to 1 where several processes form one run, or unset it."
        )
    return bool(joined) or (any(os.environ.get(name) for name in _CLUSTER_VARIABLES) and _cluster_size() != 1)


def initialize_distributed(config: MeshConfig) -> bool:
    """Joins the processes of a run, where there are several.

    Explicit settings win; otherwise the cluster is detected by JAX (Slurm, Open MPI, Kubernetes, Cloud TPU). The workers
    of a Cloud TPU VM show nothing in their environment; the launchers set ``FLAXBERT_JOIN=1`` there.

    Args:
      config: ``coordinator``, ``num_processes`` and ``process_id``.

    Returns:
      Whether several processes were joined.

    Raises:
      MeshError: The settings are incomplete, or others did not join in time; names them where ``coordinator`` is given.
    """
    import jax

    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    arguments: dict[str, Any] = {}
    if config.coordinator:
        if config.num_processes < 1 or not 0 <= config.process_id < config.num_processes:
            raise MeshError(
                f"mesh.coordinator is {config.coordinator}, so mesh.num_processes (now {config.num_processes}) must be "
                f"at least 1 and mesh.process_id (now {config.process_id}) in [0, num_processes)."
            )
        arguments = {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
        }
        roll_call(config.coordinator, config.num_processes, config.process_id, config.join_seconds)
    elif config.num_processes > 1:
        raise MeshError("mesh.num_processes needs mesh.coordinator, the address host:port of process 0.")
    elif not _in_cluster():
        return False
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=config.join_seconds,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        raise MeshError(f"The processes of the run could not be joined: {error}") from error
    return jax.process_count() > 1


def _read_limit(path: str) -> int | None:
    try:
        text = pathlib.Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def host_memory_limit_bytes() -> int:
    """Returns the memory that this process may use on its host: the container's limit or the machine's memory."""
    total = psutil.virtual_memory().total
    limits = [
        _read_limit("/sys/fs/cgroup/memory.max"),
        _read_limit("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ]
    return min([total, *(limit for limit in limits if limit is not None and limit > 0)])


def device_memory_limit_bytes(device: Any) -> int:
    """Returns the memory of one device in bytes; for CPU devices an equal share of the host's.

    Args:
      device: A JAX device.
    """
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics and statistics.get("bytes_limit"):
        return int(statistics["bytes_limit"])
    import jax

    return host_memory_limit_bytes() // max(1, jax.local_device_count())


_PEAK_BFLOAT16_FLOPS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device: Any) -> float | None:
    """Returns the dense bfloat16 peak of a device in FLOP/s from its vendor's figures, or None where unknown.

    Args:
      device: A JAX device.
    """
    kind = device.device_kind
    matches = [name for name in _PEAK_BFLOAT16_FLOPS if kind.startswith(name)]
    return _PEAK_BFLOAT16_FLOPS[max(matches, key=len)] if matches else None


def num_threads() -> int:
    """Returns how many threads this process may run at once, which is what XLA:CPU uses."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1
