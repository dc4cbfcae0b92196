"""The compiler flags that flaxbert sets, by backend: each with its value, its reason, its source, and the versions that know it.

A flag that a version does not know ends the process, so a flag is set only for versions it was tried with (a test starts each
backend that is installed with all of them). The user's own choice of a flag always stays. Nothing here runs at import.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence

from flaxbert.core.processor import processor_features


@dataclasses.dataclass(frozen=True)
class BackendFlag:
    """One flag.

    Attributes:
      name: Its name, with dashes.
      value: What it is set to.
      reason: What it does.
      source: Where that is said.
      versions: Starts of the versions of the backend's package that it was tried with.
      feature: What the processor must have, as Linux names it, for the flag to be of use; empty: nothing.
    """

    name: str
    value: str
    reason: str
    source: str
    versions: tuple[str, ...]
    feature: str = ""

    @property
    def text(self) -> str:
        """The flag as it stands in the environment."""
        return f"{self.name}={self.value}"


@dataclasses.dataclass(frozen=True)
class Backend:
    """Where the flags of a backend go.

    Attributes:
      platform: Name of the platform, as ``JAX_PLATFORMS`` writes it.
      variable: Environment variable that the compiler reads.
      package: Package whose version knows the flags or not.
      plugins: Modules of which one is installed where the backend can start; empty: it always can.
      flags: The flags.
    """

    platform: str
    variable: str
    package: str
    plugins: tuple[str, ...]
    flags: tuple[BackendFlag, ...]


WRONG_SUM_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_MAXTEXT = "AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py"
_TPU = ("0.0.42",)
_JAX_ISSUE = "jax issue 39103"
_TOOLBOX = "NVIDIA JAX-Toolbox, GPU performance"
_JAXLIB = ("0.10.2",)

CPU = Backend(
    platform="cpu",
    variable="XLA_FLAGS",
    package="jaxlib",
    plugins=(),
    flags=(
        BackendFlag(
            WRONG_SUM_FLAG,
            "individual_dot",
            "without it this version returns wrong sums; core.runtime sets it and checks a sum",
            _JAX_ISSUE,
            _JAXLIB,
        ),
        BackendFlag(
            "--xla_cpu_prefer_vector_width",
            "512",
            "a tenth off an int8 model's time; nothing on training",
            "measured, docs/status.md",
            _JAXLIB,
            "amx_int8",
        ),
    ),
)

TPU = Backend(
    platform="tpu",
    variable="LIBTPU_INIT_ARGS",
    package="libtpu",
    plugins=("libtpu",),
    flags=(
        BackendFlag(
            "--xla_tpu_enable_latency_hiding_scheduler",
            "true",
            "starts collectives as early and ends them as late as their operands allow",
            "OpenXLA, xla/service/latency_hiding_scheduler",
            _TPU,
        ),
        BackendFlag(
            "--xla_enable_async_all_gather",
            "true",
            "parameters (fsdp) and keys and values (sequence) are gathered while products run",
            _MAXTEXT,
            _TPU,
        ),
        BackendFlag(
            "--xla_enable_async_all_reduce",
            "true",
            "gradients of a layer are summed while the layer before is differentiated",
            _MAXTEXT,
            _TPU,
        ),
        BackendFlag(
            "--xla_tpu_enable_async_collective_fusion",
            "true",
            "lets a collective run inside the fusion of a product, step by step",
            _MAXTEXT,
            _TPU,
        ),
        BackendFlag(
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather",
            "true",
            "the same for all-gathers",
            _MAXTEXT,
            _TPU,
        ),
        BackendFlag(
            "--xla_tpu_enable_async_collective_fusion_fuse_all_reduce",
            "true",
            "the same for all-reduces",
            _MAXTEXT,
            _TPU,
        ),
        BackendFlag(
            "--xla_tpu_enable_async_collective_fusion_multiple_steps",
            "true",
            "a long collective is spread over several products",
            _MAXTEXT,
            _TPU,
        ),
        BackendFlag(
            "--xla_tpu_overlap_compute_collective_tc",
            "true",
            "products and collectives share the tensor core instead of taking turns",
            _MAXTEXT,
            _TPU,
        ),
        BackendFlag(
            "--xla_tpu_enable_data_parallel_all_reduce_opt",
            "true",
            "sums of gradients between slices are moved so that the slow network works beside the backward pass",
            _MAXTEXT,
            _TPU,
        ),
        BackendFlag(
            "--xla_tpu_data_parallel_opt_different_sized_ops",
            "true",
            "the same where the gradients of layers differ in size, as embeddings and blocks do",
            _MAXTEXT,
            _TPU,
        ),
    ),
)

GPU = Backend(
    platform="cuda",
    variable="XLA_FLAGS",
    package="jaxlib",
    plugins=("jax_cuda12_plugin", "jax_cuda13_plugin"),
    flags=(
        BackendFlag(
            "--xla_gpu_enable_latency_hiding_scheduler",
            "true",
            "collectives run on a stream of their own beside products",
            _TOOLBOX,
            _JAXLIB,
        ),
        BackendFlag(
            "--xla_gpu_enable_pipelined_all_gather",
            "true",
            "with scanned layers, parameters of the next layer are gathered while this one runs (fsdp)",
            _TOOLBOX,
            _JAXLIB,
        ),
        BackendFlag(
            "--xla_gpu_enable_pipelined_all_reduce",
            "true",
            "with scanned layers, gradients of a layer are summed while the one before is differentiated (data); for fsdp this is the default",
            _TOOLBOX,
            _JAXLIB,
        ),
    ),
)

BACKENDS = (CPU, TPU, GPU)


@dataclasses.dataclass(frozen=True)
class FlagState:
    """What became of a flag.

    Attributes:
      backend: Its backend.
      flag: The flag.
      state: ``set``, ``not set``, ``set by user``, ``not needed without`` and a feature, or ``not known to`` and a version.
    """

    backend: Backend
    flag: BackendFlag
    state: str


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _chosen(variable: str) -> dict[str, str]:
    """Returns the flags of an environment variable and their values; the last of two alike counts."""
    words = os.environ.get(variable, "").split()
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def may_start(backend: Backend) -> bool:
    """Returns whether a backend is installed and not ruled out by ``JAX_PLATFORMS``, without starting it.

    Args:
      backend: The backend.
    """
    wanted = [name for name in os.environ.get("JAX_PLATFORMS", "").lower().split(",") if name]
    names = {backend.platform, "gpu"} if backend is GPU else {backend.platform}
    if wanted and not names & set(wanted):
        return False
    return not backend.plugins or any(importlib.util.find_spec(name) is not None for name in backend.plugins)


def flag_states(backends: Sequence[Backend] | None = None) -> list[FlagState]:
    """Returns what the environment says of every flag, changing nothing.

    Args:
      backends: Backends to look at; None: those that may start.
    """
    states, features = [], processor_features().split()
    for backend in BACKENDS if backends is None else backends:
        if backends is None and not may_start(backend):
            continue
        chosen, version = _chosen(backend.variable), _version(backend.package)
        for flag in backend.flags:
            if flag.name in chosen:
                state = "set" if chosen[flag.name] == flag.value else f"set by user to {chosen[flag.name]}"
            elif flag.feature and flag.feature not in features:
                state = f"not needed without {flag.feature}"
            elif any(version == known or version.startswith(f"{known}.") for known in flag.versions):
                state = "not set"
            else:
                state = f"not known to {backend.package} {version or '(absent)'}"
            states.append(FlagState(backend, flag, state))
    return states


def set_backend_flags(backends: Sequence[Backend] | None = None) -> list[FlagState]:
    """Adds to the environment what the backends that may start should know; call it before one starts.

    The cure of wrong sums is left to ``core.runtime.cure_wrong_sums``, which checks a sum.

    Args:
      backends: Backends to set up; None: those that may start.

    Returns:
      The state of every flag afterwards.
    """
    for entry in flag_states(backends):
        if entry.state == "not set" and entry.flag.name != WRONG_SUM_FLAG:
            variable = entry.backend.variable
            os.environ[variable] = f"{os.environ.get(variable, '')} {entry.flag.text}".strip()
    return flag_states(backends)
