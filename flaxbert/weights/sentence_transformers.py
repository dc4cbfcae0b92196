"""The folder layout of sentence-transformers: how token vectors become sentence vectors.

Two layouts are read: that of versions up to 5 (booleans per pooling mode, ``max_seq_length``) and that of version 6. The
older one is written, since every version and other servers read it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxbert.errors import ConfigError, WeightsError, nearest
from flaxbert.weights.formats.stored import StoredTensor
from flaxbert.weights.readers import open_weights, read_json, read_json_object

_MODES: dict[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Pooling modes by their boolean in the older layout, in the order in which their vectors stand side by side."""

_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Identity": lambda inputs: inputs,
    "Tanh": np.tanh,
    "ReLU": lambda inputs: np.maximum(inputs, 0.0),
    "Sigmoid": lambda inputs: 1.0 / (1.0 + np.exp(-inputs)),
    "SiLU": lambda inputs: inputs / (1.0 + np.exp(-inputs)),
}
_ACTIVATION_MODULES = {"Identity": "torch.nn.modules.linear.Identity"}

_NO_LIMIT = 100_000
"""Lengths above this are placeholders for 'no limit', as tokenizers write them."""


@dataclasses.dataclass(frozen=True, eq=False)
class DenseLayer:
    """A linear layer on sentence vectors.

    Attributes:
      kernel: float32 ``[in, out]``.
      bias: float32 ``[out]``, or None.
      activation: Class name of the activation: Identity, Tanh, ReLU, Sigmoid or SiLU.
    """

    kernel: np.ndarray
    bias: np.ndarray | None = None
    activation: str = "Identity"

    def __call__(self, vectors: Float[np.ndarray, "texts embed"]) -> Float[np.ndarray, "texts out"]:
        """Returns ``activation(vectors @ kernel + bias)`` in float32."""
        products = np.asarray(vectors, np.float32) @ self.kernel
        if self.bias is not None:
            products = products + self.bias
        return _ACTIVATIONS[self.activation](products).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class SentencePooling:
    """How token vectors become a sentence vector: pooling, then dense layers, then normalisation.

    Attributes:
      modes: Pooling modes as ``nn.heads.pool`` names them; several stand side by side.
      normalize: Whether vectors get length 1.
      dense: Linear layers after pooling.
      max_length: Most tokens of a text; 0: as the tokenizer says.
      prompts: Text put before inputs, by purpose.
      default_prompt: Name of the prompt used without being asked for; empty for none.
      include_prompt: Whether the prompt's tokens are pooled too.
      similarity: Name of the similarity that the vectors are compared with; empty where the folder says nothing.
    """

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = False
    dense: tuple[DenseLayer, ...] = ()
    max_length: int = 0
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str = ""
    include_prompt: bool = True
    similarity: str = ""

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.modes if mode not in _MODES.values()]
        if unknown or not self.modes:
            word = unknown[0] if unknown else ""
            raise WeightsError(
                f"Pooling '{word}' is not known; choose among {', '.join(_MODES.values())}.{nearest(word, _MODES.values())}"
            )

    def apply_dense(self, vectors: Float[np.ndarray, "texts embed"]) -> Float[np.ndarray, "texts out"]:
        """Returns the vectors after the dense layers.

        Args:
          vectors: Pooled vectors; modes side by side.
        """
        for layer in self.dense:
            vectors = layer(vectors)
        return vectors

    def output_size(self, hidden_size: int) -> int:
        """Returns the width of the sentence vectors.

        Args:
          hidden_size: Width of the token vectors.
        """
        return self.dense[-1].kernel.shape[1] if self.dense else hidden_size * len(self.modes)

    def find_prompt(self, name: str | None) -> str:
        """Returns the prompt of a name.

        Args:
          name: Name of a prompt; None: the default one.

        Raises:
          ConfigError: There is no such prompt.
        """
        chosen = self.default_prompt if name is None else name
        if not chosen or chosen in self.prompts:
            return self.prompts.get(chosen, "")
        known = ", ".join(self.prompts) or "none"
        raise ConfigError(f"The model has no prompt '{chosen}'; it has {known}.{nearest(chosen, self.prompts)}")

    def replace(self, **changes: Any) -> "SentencePooling":
        """Returns a copy with some fields changed.

        Args:
          **changes: New values by field name.
        """
        return dataclasses.replace(self, **changes)


def _modules(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    file = folder / "modules.json"
    if not file.is_file():
        return []
    entries = read_json(file)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and entry.get("type") for entry in entries):
        raise WeightsError(f"{file} is no list of modules with 'type' and 'path'.")
    modules = []
    for entry in entries:
        path = str(entry.get("path", ""))
        parts = pathlib.PurePosixPath(path.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise WeightsError(f"{file} names the module folder '{path}', which is not inside the model folder.")
        modules.append((str(entry["type"]).rsplit(".", 1)[-1], folder / path))
    return modules


def transformer_folder(folder: pathlib.Path) -> pathlib.Path:
    """Returns where config, weights and tokenizer lie: the folder itself, or its ``0_Transformer``.

    Args:
      folder: A model folder of either kind.
    """
    for kind, path in _modules(folder):
        if kind == "Transformer":
            return path
    return folder


def _pooling_modes(file: pathlib.Path) -> tuple[tuple[str, ...], bool]:
    settings = read_json_object(file)
    include_prompt = bool(settings.get("include_prompt", True))
    mode = settings.get("pooling_mode")
    if mode is not None:
        modes = tuple(mode) if isinstance(mode, list) else (str(mode),)
    else:
        modes = tuple(name for key, name in _MODES.items() if settings.get(key))
    unknown = [name for name in modes if name not in _MODES.values()]
    if unknown or not modes:
        found = ", ".join(map(str, unknown)) or "no mode at all"
        raise WeightsError(f"{file} asks for {found}; flaxbert pools by {', '.join(_MODES.values())}.")
    return modes, include_prompt


def _dense_layer(folder: pathlib.Path) -> DenseLayer:
    settings = read_json_object(folder / "config.json")
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation not in _ACTIVATIONS:
        raise WeightsError(f"{folder} has the activation {activation}; flaxbert knows {', '.join(_ACTIVATIONS)}.")
    tensors = open_weights(folder)
    if "linear.weight" not in tensors or set(tensors) - {"linear.weight", "linear.bias"}:
        raise WeightsError(f"{folder} holds {', '.join(tensors)}, but a dense module is linear.weight and linear.bias.")
    kernel = np.ascontiguousarray(tensors["linear.weight"].read().T)
    bias = tensors["linear.bias"].read() if "linear.bias" in tensors else None
    return DenseLayer(kernel, bias, activation)


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / "config_sentence_transformers.json"
    return read_json_object(file) if file.is_file() else {}


def _declared_length(folder: pathlib.Path) -> int:
    places = (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length"))
    for name, key in places:
        file = transformer_folder(folder) / name
        value = read_json_object(file).get(key) if file.is_file() else None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < _NO_LIMIT:
            return int(value)
    return 0


def read_pooling(folder: pathlib.Path) -> SentencePooling | None:
    """Reads how a sentence-transformers folder makes sentence vectors.

    Args:
      folder: A model folder.

    Returns:
      The pooling; None where the folder is no sentence-transformers model (a CrossEncoder is none either).

    Raises:
      WeightsError: A module or setting that flaxbert does not know, named with its file.
    """
    modules = _modules(folder)
    if not any(kind == "Pooling" for kind, _ in modules):
        return None
    modes, include_prompt, normalize = ("mean",), True, False
    dense: list[DenseLayer] = []
    for kind, path in modules:
        if kind == "Pooling":
            modes, include_prompt = _pooling_modes(path / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind == "Dense" and not normalize:
            dense.append(_dense_layer(path))
        elif kind != "Transformer":
            raise WeightsError(
                f"{folder / 'modules.json'} has the module {kind} at this place; flaxbert knows Transformer, Pooling, "
                "Dense and Normalize, in this order."
            )
    settings = _settings(folder)
    prompts = settings.get("prompts") or {}
    return SentencePooling(
        modes=modes,
        normalize=normalize,
        dense=tuple(dense),
        max_length=_declared_length(folder),
        prompts={str(name): str(text) for name, text in prompts.items() if text},
        default_prompt=str(settings.get("default_prompt_name") or ""),
        include_prompt=include_prompt,
        similarity=str(settings.get("similarity_fn_name") or ""),
    )


def token_projection(folder: pathlib.Path) -> StoredTensor | None:
    """Returns the projection of token vectors where a folder is a multi-vector model (ColBERT): without pooling, with a dense module.

    Args:
      folder: A model folder.

    Raises:
      WeightsError: The module is more than one kernel, or there are several.
    """
    modules = _modules(folder)
    dense = [path for kind, path in modules if kind == "Dense"]
    if not dense or any(kind == "Pooling" for kind, _ in modules):
        return None
    tensors = open_weights(dense[0])
    settings = read_json_object(dense[0] / "config.json")
    activation = str(settings.get("activation_function", "Identity")).rsplit(".", 1)[-1]
    if len(dense) > 1 or set(tensors) != {"linear.weight"} or activation != "Identity" or settings.get("use_residual"):
        raise WeightsError(
            f"{folder} projects its token vectors by {len(dense)} modules, the first with {', '.join(tensors)} and {activation}; "
            "flaxbert reads one with linear.weight alone and no activation."
        )
    return tensors["linear.weight"]


def declared_activation(folder: pathlib.Path) -> str:
    """Returns the activation of scores that version 6 declares for a cross-encoder; empty where it declares none.

    Args:
      folder: A model folder.
    """
    return str(_settings(folder).get("activation_fn") or "")


def _write_json(file: pathlib.Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _pooling_settings(pooling: SentencePooling, hidden_size: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"word_embedding_dimension": hidden_size}
    settings |= {key: mode in pooling.modes for key, mode in _MODES.items()}
    if pooling.modes != tuple(mode for mode in _MODES.values() if mode in pooling.modes):
        settings["pooling_mode"] = list(pooling.modes)  # only the newer key can say in which order vectors stand
    return settings | {"include_prompt": pooling.include_prompt}


def write_pooling(
    folder: pathlib.Path,
    pooling: SentencePooling,
    hidden_size: int,
    max_length: int,
    write_tensors: Callable[[pathlib.Path, Mapping[str, np.ndarray]], None],
) -> None:
    """Writes the files that make a folder a sentence-transformers model, in the layout of versions up to 5.

    Args:
      folder: The model folder, which exists.
      pooling: What to write.
      hidden_size: Width of the token vectors.
      max_length: Most tokens of a text.
      write_tensors: Writes one safetensors file.
    """
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    _write_json(folder / "1_Pooling" / "config.json", _pooling_settings(pooling, hidden_size))
    for layer in pooling.dense:
        name = f"{len(modules)}_Dense"
        modules.append(("Dense", name))
        module = _ACTIVATION_MODULES.get(layer.activation, f"torch.nn.modules.activation.{layer.activation}")
        settings = {
            "in_features": layer.kernel.shape[0],
            "out_features": layer.kernel.shape[1],
            "bias": layer.bias is not None,
            "activation_function": module,
        }
        _write_json(folder / name / "config.json", settings)
        tensors = {"linear.weight": np.ascontiguousarray(layer.kernel.T)}
        write_tensors(
            folder / name / "model.safetensors",
            tensors if layer.bias is None else tensors | {"linear.bias": layer.bias},
        )
    if pooling.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
        (folder / modules[-1][1]).mkdir()
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", entries)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    settings = {
        "prompts": dict(pooling.prompts),
        "default_prompt_name": pooling.default_prompt or None,
        "similarity_fn_name": pooling.similarity or "cosine",
    }
    _write_json(folder / "config_sentence_transformers.json", settings)
