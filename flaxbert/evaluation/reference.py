"""Stock transformers on torch, where it is installed, as the reference for a model folder: per-layer and output differences.

This is the one file of the package that imports torch, and only when ``flaxbert verify`` asks for the comparison.
"""

import copy
import dataclasses
import importlib.util
import inspect
import pathlib
import warnings
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from flaxbert.architecture import Execution
from flaxbert.errors import WeightsError
from flaxbert.families import get_family
from flaxbert.families.graph import forward, graph_definition
from flaxbert.weights.load import LoadedCheckpoint

OUTPUT_TOLERANCE = 1e-5
"""Largest difference, relative to the larger of 1 and the largest value."""

SHARE_OF_REFERENCE_ERROR = 3.0
"""Or this many times the distance of the reference in float32 from itself in float64, where that is more."""

Inputs = Mapping[str, Int[np.ndarray, "rows length"]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one array of flaxbert is from the reference's.

    Attributes:
      name: What is compared: ``layer 3``, ``logits``…
      largest: Largest absolute difference at real tokens.
      allowed: What passes.
    """

    name: str
    largest: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the difference is small enough; a difference that is no number is not."""
        return self.largest <= self.allowed


def missing_reference(loaded: LoadedCheckpoint) -> str:
    """Returns why a model can not be compared here; empty where it can.

    Args:
      loaded: The model.
    """
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import transformers

    name = get_family(loaded.config.family).architectures[loaded.task]
    if not hasattr(transformers, name):
        return f"transformers has no class {name}"
    return ""


def random_inputs(loaded: LoadedCheckpoint, rows: int, length: int, seed: int) -> dict[str, Any]:
    """Returns random texts of different lengths, padded on the right unless padding changes what the reference gives.

    Args:
      loaded: The model.
      rows: Number of texts.
      length: Most tokens of one.
      seed: Seed of the draw.
    """
    config, random = loaded.config, np.random.default_rng(seed)
    length = min(length, config.max_length)
    lengths = random.integers(max(1, length // 2), length + 1, rows)
    if get_family(config.family).stock_reads_padding:
        lengths[:] = length
    mask = np.arange(length)[None] < lengths[:, None]
    ids = random.integers(min(5, config.vocab_size - 1), config.vocab_size, (rows, length))
    inputs = {"input_ids": np.where(mask, ids, config.pad_token_id), "attention_mask": mask}
    if config.type_vocab_size:
        inputs["token_type_ids"] = random.integers(0, config.type_vocab_size, ids.shape) * mask
    inputs = {name: array.astype(np.int32) for name, array in inputs.items()}
    if loaded.task == "multiple-choice":
        return {name: np.stack([array, array[::-1]], axis=1) for name, array in inputs.items()}
    return inputs


def load_reference(loaded: LoadedCheckpoint, folder: pathlib.Path) -> tuple[Any, list[str]]:
    """Loads a folder with the stock class of the task; code from the folder is never run.

    Args:
      loaded: The model as flaxbert loaded it.
      folder: The folder.

    Returns:
      The stock model, and the tensors that it found missing or did not expect.

    Raises:
      WeightsError: Stock transformers can not load the folder.
    """
    import transformers

    stock = getattr(transformers, get_family(loaded.config.family).architectures[loaded.task])
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, info = stock.from_pretrained(
                str(folder), output_loading_info=True, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WeightsError(f"Stock transformers can not load {folder}: {str(error).splitlines()[0]}") from error
    finally:
        transformers.logging.set_verbosity(level)
    problems = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, names)))}" for kind, names in info.items() if names
    ]
    return model.float().eval(), problems


def _reference_arrays(model: Any, inputs: Inputs, dtype: Any) -> dict[str, np.ndarray]:
    import torch

    known = inspect.signature(model.forward).parameters
    with torch.no_grad():
        rows = {name: torch.tensor(array, dtype=torch.long) for name, array in inputs.items() if name in known}
        output = copy.deepcopy(model).to(dtype)(**rows, output_hidden_states=True)
    arrays: dict[str, Any] = {f"layer {index}": value for index, value in enumerate(output.hidden_states or ())}
    if hasattr(output, "start_logits"):
        arrays["logits"] = torch.stack([output.start_logits, output.end_logits], dim=-1)
    for name in ("logits", "prediction_logits", "last_hidden_state", "pooler_output"):
        if getattr(output, name, None) is not None:
            arrays["logits" if name == "prediction_logits" else name] = getattr(output, name)
    for name in ("seq_relationship_logits", "sop_logits"):
        if hasattr(output, name):
            arrays["next_sentence_logits"] = getattr(output, name)
    return {name: value.double().numpy() for name, value in arrays.items()}


def _our_arrays(loaded: LoadedCheckpoint, inputs: Inputs) -> dict[str, np.ndarray]:
    graphdef = graph_definition(loaded.config, loaded.task, Execution())
    program = jax.jit(lambda params, batch: forward(graphdef, params, batch, keep_hidden=True))
    output = program(jax.tree.map(jnp.asarray, loaded.params), dict(inputs))
    arrays = {f"layer {index}": value for index, value in enumerate(output.hidden_states)}
    arrays |= {"logits": output.logits, "next_sentence_logits": output.next_sentence_logits}
    arrays |= {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooled}
    return {name: np.asarray(value, np.float64) for name, value in arrays.items() if value is not None}


def compare(
    loaded: LoadedCheckpoint, model: Any, rows: int = 3, length: int = 32, seed: int = 0
) -> tuple[Difference, ...]:
    """Runs both models on random texts.

    Args:
      loaded: The model as flaxbert loaded it.
      model: The stock model.
      rows: Number of texts.
      length: Most tokens of one.
      seed: Seed of the texts.

    Returns:
      A difference for the hidden states after the embeddings and each layer, and for each output.

    Raises:
      WeightsError: The two models give arrays of different shapes.
    """
    import torch

    inputs = random_inputs(loaded, rows, length, seed)
    ours = _our_arrays(loaded, inputs)
    single, double = (_reference_arrays(model, inputs, dtype) for dtype in (torch.float32, torch.float64))
    mask = inputs["attention_mask"].reshape(-1, inputs["attention_mask"].shape[-1]) == 1
    found = []
    for name, reference in single.items():
        if name not in ours:
            continue
        arrays = [ours[name], reference, double[name]]
        if len({array.shape for array in arrays}) != 1:
            raise WeightsError(f"'{name}' has shape {ours[name].shape} here and {reference.shape} in transformers.")
        if arrays[0].shape[:2] == mask.shape and arrays[0].ndim > 2:
            arrays = [array[mask] for array in arrays]
        mine, theirs, exact = arrays
        own = float(np.abs(theirs - exact).max())
        allowed = max(OUTPUT_TOLERANCE * max(1.0, float(np.abs(theirs).max())), SHARE_OF_REFERENCE_ERROR * own)
        found.append(Difference(name, float(np.abs(mine - theirs).max()), allowed))
    return tuple(found)


def describe_reference() -> str:
    """Returns the versions of what models are compared with."""
    return f"transformers {metadata.version('transformers')} on torch {metadata.version('torch')}"
