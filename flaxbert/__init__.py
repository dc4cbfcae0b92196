"""flaxbert: the toolkit for BERT-family encoders on JAX.

Public names are loaded when they are first used: importing flaxbert touches no device, no network and no global flag.

Example:
  >>> import flaxbert
  >>> model = flaxbert.load("path/or/id", task="sequence-classification")  # doctest: +SKIP
  >>> model.predict(["A fine film."])  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaxbert.client import AsyncClient, Client
    from flaxbert.core.runtime import configure
    from flaxbert.model import Model, load
    from flaxbert.retrieval import encode_sparse, encode_tokens, late_interaction, rerank
    from flaxbert.transforms.quantize import quantize
    from flaxbert.transforms.sparsify import sparsify

__version__ = "0.1.0"

_PUBLIC = {
    "AsyncClient": "flaxbert.client",
    "Client": "flaxbert.client",
    "Model": "flaxbert.model",
    "load": "flaxbert.model",
    "configure": "flaxbert.core.runtime",
    "encode_sparse": "flaxbert.retrieval",
    "encode_tokens": "flaxbert.retrieval",
    "late_interaction": "flaxbert.retrieval",
    "rerank": "flaxbert.retrieval",
    "quantize": "flaxbert.transforms.quantize",
    "sparsify": "flaxbert.transforms.sparsify",
}

__all__ = [
    "AsyncClient",
    "Client",
    "Model",
    "__version__",
    "configure",
    "encode_sparse",
    "encode_tokens",
    "late_interaction",
    "load",
    "quantize",
    "rerank",
    "sparsify",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'flaxbert' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
