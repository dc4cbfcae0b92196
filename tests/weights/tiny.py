"""Small model folders without torch, and ways to damage them."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy

from flaxbert.architecture import ModelConfig
from flaxbert.core.trees import map_leaves
from flaxbert.families.graph import abstract_params
from flaxbert.weights.save import save_checkpoint

CONFIG = ModelConfig(
    vocab_size=31,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=16,
    num_labels=3,
    labels=("bad", "fair", "good"),
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film", "##s", "bad", "the", "was", "."]


def random_params(config: ModelConfig = CONFIG, task: str = "sequence-classification", seed: int = 0) -> Any:
    """Returns a tree of random leaves, without compiling anything."""
    random = np.random.default_rng(seed)
    return map_leaves(
        lambda _, leaf: random.standard_normal(leaf.shape).astype(np.float32), abstract_params(config, task)
    )


def write_tiny(
    folder: pathlib.Path, task: str = "sequence-classification", config: ModelConfig = CONFIG
) -> pathlib.Path:
    """Writes a folder of a small random model with a WordPiece vocabulary."""
    save_checkpoint(folder, config=config, task=task, params=random_params(config, task))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    return folder


def change_config(folder: pathlib.Path, **changes: Any) -> None:
    """Rewrites config.json; a value of None removes the key."""
    file = folder / "config.json"
    settings = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def change_tensors(
    folder: pathlib.Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray] | None]
) -> dict[str, np.ndarray]:
    """Rewrites model.safetensors through the reference implementation of the format."""
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors = change(tensors) or tensors
    safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, file)
    return tensors
