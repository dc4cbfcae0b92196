"""Where a result comes from, told without telling about the machine: names, commands and versions for model cards."""

import importlib.metadata
import os
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
)
"""Libraries whose versions a card names, beside flaxbert and Python."""

_FOLDERS = re.compile(r"(?<![\w.:/~])(?:~[\w.-]*|\.{1,2}|[A-Za-z]:)?[/\\](?:[^\s/\\,;'\"\[\](){}=]+[/\\])*")
"""The folders of a path that starts at a root, a home, a drive, or with dots; its last part is not included."""

_SECRET = re.compile(r"\b(?:hf_|ghp_|github_pat_|sk-)[A-Za-z0-9_-]{16,}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(name: str) -> bool:
    """Returns whether a name looks like ``owner/name`` or ``name`` on the hub and is nothing on this machine.

    Args:
      name: What a run was told to read.
    """
    if not _HUB_ID.fullmatch(name) or pathlib.Path(name).exists():
        return False
    return not re.search(r"\.(csv|tsv|jsonl?|parquet|txt|gz|ya?ml|safetensors|bin)$", name)


def public_name(name: str) -> str:
    """Returns a hub id as it is, and of any path only the last part.

    Args:
      name: A path or a hub id.

    Example:
      >>> public_name("/home/somebody/films/train.tsv")
      'train.tsv'
    """
    if not name or is_hub_id(name):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def public_command(arguments: Sequence[str]) -> str:
    """Returns a command line in which paths are cut to their last part and access tokens are masked.

    Args:
      arguments: As in ``sys.argv``.

    Example:
      >>> public_command(["/opt/bin/flaxbert", "finetune", "--data.train=/data/a.csv", "--model.path", "org/name"])
      'flaxbert finetune --data.train=a.csv --model.path org/name'
    """
    import shlex

    return " ".join(shlex.quote(_public_argument(argument)) for argument in arguments)


def _public_argument(argument: str) -> str:
    option, separator, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    rooted = value.startswith(("/", "~", "./", "../", "\\")) or re.match(r"[A-Za-z]:[/\\]", value)
    if rooted or ("/" in value and pathlib.Path(value).exists()):
        value = public_name(value)
    value = _FOLDERS.sub("", value)
    return _SECRET.sub("***", f"{option}{separator}{value}")


def library_versions() -> dict[str, str]:
    """Returns the versions of flaxbert, Python and the libraries that results depend on."""
    import flaxbert

    versions = {"flaxbert": flaxbert.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, Any]:
    """Returns what figures of speed depend on: processor, cores, Python."""
    model = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version()}


def device_summary() -> str:
    """Returns the kind and number of the devices of the run, for example ``4 x TPU v4``."""
    import jax

    kinds: dict[str, int] = {}
    for device in jax.devices():
        kinds[device.device_kind] = kinds.get(device.device_kind, 0) + 1
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def public_options(options: Mapping[str, bool | str | float | int]) -> dict[str, str]:
    """Returns flat options as text, with paths cut to their last part.

    Args:
      options: From ``flatten_options``.
    """
    return {
        name: _public_argument(str(value)) if os.sep in str(value) else str(value) for name, value in options.items()
    }
