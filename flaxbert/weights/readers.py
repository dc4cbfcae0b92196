"""The way to the weights of a model folder, whatever their format, and to its JSON files.

``open_weights`` looks for the formats in a fixed order: safetensors, files of ``torch.save``, Flax's msgpack, TensorFlow's
checkpoints. Whichever it finds, tensors come back under torch's names and with torch's axes, and none is read before it is
asked for. No format runs anything that a file names.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.flax_weights import as_torch, read_flax_file, torch_name
from flaxbert.weights.formats.json_files import read_json, read_json_object
from flaxbert.weights.formats.safetensors import DTYPES, INDEX_FILE, SINGLE_FILE, read_safetensors_header
from flaxbert.weights.formats.stored import StoredTensor
from flaxbert.weights.formats.tensorflow_checkpoint import read_tensorflow_checkpoint
from flaxbert.weights.formats.torch_files import read_torch_file


@dataclasses.dataclass(frozen=True)
class _Format:
    """A format whose weights are one file, or shards that an index lists."""

    files: tuple[str, ...]
    index: str
    read: Callable[[pathlib.Path], dict[str, StoredTensor]]
    rename: Callable[[str], str] = str


def _read_safetensors(file: pathlib.Path) -> dict[str, StoredTensor]:
    tensors, metadata = read_safetensors_header(file)
    if metadata.get("format") != "flax":
        return tensors
    found = [as_torch(name.replace(".", "/"), tensor) for name, tensor in tensors.items()]
    by_name = {tensor.name: tensor for tensor in found}
    if len(by_name) != len(found):
        raise WeightsError(f"{file} was written by Flax, and two of its arrays have one name of torch; write it again.")
    return by_name


_FORMATS = (
    _Format((SINGLE_FILE,), INDEX_FILE, _read_safetensors),
    _Format(
        ("pytorch_model.bin", "pytorch_model.pt", "model.bin", "model.pt", "model.pth"),
        "pytorch_model.bin.index.json",
        read_torch_file,
    ),
    _Format(("flax_model.msgpack",), "flax_model.msgpack.index.json", read_flax_file, torch_name),
)

_CHECKPOINTS = "*ckpt*.index"
_TORCH_ENDINGS = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_OTHER_FORMATS: dict[str, str] = {
    "tf_model.h5": "weights of TensorFlow's Keras",
    "adapter_model.safetensors": "an adapter without its base model",
    "adapter_model.bin": "an adapter without its base model",
    "model.onnx": "an ONNX export",
}


def _shard_names(index: pathlib.Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise WeightsError(f"{index} has no 'weight_map' from tensor names to files.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if name != pathlib.PurePath(name).name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise WeightsError(f"{index} names the shard '{name}', which is no plain file name inside the folder.")
    present = {path.name for path in index.parent.iterdir() if path.is_file()}
    missing = [name for name in names if name not in present]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise WeightsError(
            f"{index.parent} lacks {', '.join(missing[:8])}{more}, which {index.name} names; copy them there too."
        )
    return weight_map


def _check_index(index: pathlib.Path, weight_map: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    lost = [
        f"'{name}' in {file}"
        for name, file in weight_map.items()
        if name not in tensors or tensors[name].file.name != file
    ]
    if lost:
        raise WeightsError(f"{index} promises tensors that are not where it says: {', '.join(lost[:5])}.")


def _open_shards(index: pathlib.Path, stored: _Format) -> dict[str, StoredTensor]:
    weight_map = _shard_names(index)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        found = stored.read(index.parent / shard)
        twice = [name for name in found if name in tensors]
        if twice:
            raise WeightsError(
                f"Tensor '{twice[0]}' is both in {tensors[twice[0]].file.name} and {shard} of {index.parent}."
            )
        tensors.update(found)
    _check_index(index, {stored.rename(name): file for name, file in weight_map.items()}, tensors)
    return tensors


def open_weights(folder: pathlib.Path) -> dict[str, StoredTensor]:
    """Finds the weights of a model folder and what they consist of.

    Args:
      folder: A folder with ``model.safetensors``, ``pytorch_model.bin``, ``flax_model.msgpack`` (each alone, or shards with
        an index) or ``NAME.ckpt.index`` and its data. Where there are several, the first of these is read.

    Returns:
      All tensors by torch's name, not yet read.

    Raises:
      WeightsError: There are no weights that flaxbert reads, a shard is missing, a file is broken, or a pickle names what
        tensors do not need.
    """
    for stored in _FORMATS:
        for name in stored.files:
            if (folder / name).is_file():
                return stored.read(folder / name)
        if (folder / stored.index).is_file():
            return _open_shards(folder / stored.index, stored)
    checkpoints = sorted(path for path in folder.glob(_CHECKPOINTS) if path.is_file())
    if len(checkpoints) > 1:
        raise WeightsError(
            f"{folder} holds {len(checkpoints)} TensorFlow checkpoints ({', '.join(path.name for path in checkpoints[:5])}"
            f"{', …' if len(checkpoints) > 5 else ''}); keep the one to read and move the others elsewhere."
        )
    if checkpoints:
        return read_tensorflow_checkpoint(checkpoints[0])
    raise WeightsError(describe_missing_weights(folder))


def describe_missing_weights(folder: pathlib.Path) -> str:
    """Returns a message that says why a folder has no weights to read, and how to mend it."""
    names = sorted(path.name for path in folder.iterdir())
    for name, meaning in _OTHER_FORMATS.items():
        if name in names:
            return f"{folder} holds {meaning} ({name}), which flaxbert does not read; convert it to {SINGLE_FILE}."
    for name in names:
        if name.endswith(_TORCH_ENDINGS):
            return (
                f"{folder} has no weights under a name that flaxbert knows, but a file {name}. If it is the state "
                f"dictionary of the model, rename it to {_FORMATS[1].files[0]}; best is {SINGLE_FILE}."
            )
    listing = ", ".join(names[:12]) + (" …" if len(names) > 12 else "") or "nothing"
    return (
        f"{folder} has no {SINGLE_FILE} (or {INDEX_FILE} with its shards), no pytorch_model.bin, flax_model.msgpack or "
        f"TensorFlow checkpoint (NAME.ckpt.index); it holds {listing}."
    )


__all__ = [
    "DTYPES",
    "INDEX_FILE",
    "SINGLE_FILE",
    "StoredTensor",
    "describe_missing_weights",
    "open_weights",
    "read_json",
    "read_json_object",
    "read_safetensors_header",
]
