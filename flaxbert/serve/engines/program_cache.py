"""Compiled programs on disk, so that a server that starts again, or changes to another version, neither traces nor compiles.

JAX's own cache saves compiling but not tracing, which is two thirds of what is left. Whoever can write a program can run code in every process
that reads it; so the folder is that of the compile cache, which belongs to the user alone.
"""

import functools
import hashlib
import importlib.metadata
import os
import pathlib
import weakref
from typing import Any

import jax
from jax.experimental import serialize_executable

from flaxbert.core.files import whole_file
from flaxbert.core.processor import processor_features
from flaxbert.core.runtime import compilation_cache_folder

FOLDER = "served-programs"
MOST_FILES = 2048
"""Programs that are kept; the ones that were not read for longest go first."""

_DIGEST_BYTES = 32

_LOADED: "weakref.WeakValueDictionary[str, Any]" = weakref.WeakValueDictionary()
"""Programs of this process, as long as an engine has them: the next version of the same architecture takes them over."""
_CODE = ("core", "nn", "families", "serve")
"""Parts of flaxbert that say what a program computes."""


@functools.lru_cache(maxsize=1)
def _surroundings() -> str:
    """Returns everything but model and shape that a program depends on."""
    device = jax.devices()[0]
    parts = [
        *(importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")),
        device.platform,
        device.device_kind,
        str(jax.device_count()),
        str(device.client.platform_version),
        os.environ.get("XLA_FLAGS", ""),
        str(sorted((name, str(value)) for name, value in jax.config.values.items() if "cache" not in name)),
        processor_features(),
        _code_digest(),
    ]
    return "\n".join(parts)


def _code_digest() -> str:
    root = pathlib.Path(__file__).parents[2]
    digest = hashlib.sha256()
    for file in sorted(file for part in _CODE for file in (root / part).rglob("*.py")):
        digest.update(file.read_bytes())
    for name in ("architecture.py", "inference.py"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def _load(payload: bytes, inputs: Any, outputs: Any) -> Any:
    """Returns a program for one device; without being told so, JAX would expect a part of every argument for each device."""
    return serialize_executable.deserialize_and_load(payload, inputs, outputs, execution_devices=jax.devices()[:1])


class ProgramCache:
    """The programs of one model.

    Args:
      identity: What says, beside the arguments' shapes, what the programs compute.
      params: The parameters.
    """

    def __init__(self, identity: str, params: Any) -> None:
        folder = compilation_cache_folder()
        self._folder = folder / FOLDER if folder is not None else None
        leaves, self._structure = jax.tree.flatten(params)
        shapes = [(leaf.shape, str(leaf.dtype), getattr(leaf, "weak_type", False)) for leaf in leaves]
        self._identity = f"{_surroundings()}\n{identity}\n{self._structure}\n{shapes}"
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, exist_ok=True)

    def _key(self, name: str) -> str:
        return hashlib.sha256(f"{self._identity}\n{name}".encode()).hexdigest()

    def _file(self, name: str) -> pathlib.Path | None:
        return None if self._folder is None else self._folder / self._key(name)

    def read(self, name: str, params: Any, batch: Any) -> Any:
        """Returns a program, or None where it is not there or damaged.

        Args:
          name: Its function and shape.
          params: Parameters that it will take.
          batch: A batch of its shape.
        """
        loaded = _LOADED.get(self._key(name))
        if loaded is not None:
            return loaded
        file = self._file(name)
        if file is None:
            return None
        try:
            content = file.read_bytes()
            os.utime(file)
        except OSError:
            return None
        payload = content[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != content[:_DIGEST_BYTES]:
            return None
        inputs = jax.tree.structure(((params, batch), {}))
        try:
            return self._remember(name, _load(payload, inputs, jax.tree.structure(0)))
        except Exception:  # noqa: BLE001  whatever a backend does not like about it, it can be compiled anew
            return None

    def _remember(self, name: str, program: Any) -> Any:
        _LOADED[self._key(name)] = program
        return program

    def write(self, name: str, program: Any, params: Any, batch: Any) -> None:
        """Keeps a program, where there is a folder and the backend can write it.

        Where JAX's own cache is on, what was written is read again and run once: a program that came out of it loses parts on the way
        (jaxlib 0.10.2 on CPU). Servers switch it off.

        Args:
          name: Its function and shape.
          program: What was compiled.
          params: Parameters that it takes.
          batch: A batch of its shape.
        """
        self._remember(name, program)
        file = self._file(name)
        if file is None:
            return
        try:
            payload, *structures = serialize_executable.serialize(program)
            if jax.config.values["jax_compilation_cache_dir"]:
                jax.block_until_ready(_load(payload, *structures)(params, batch))
            with whole_file(file) as place:
                place.write_bytes(hashlib.sha256(payload).digest() + payload)
        except (OSError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError):
            return  # a cache that can not be written costs time alone

    def prune(self) -> None:
        """Deletes the programs that were not read for longest, where there are too many."""
        if self._folder is None:
            return
        files = [(file.stat().st_mtime, file) for file in self._folder.iterdir()]
        for _, file in sorted(files)[: max(0, len(files) - MOST_FILES)]:
            file.unlink(missing_ok=True)
