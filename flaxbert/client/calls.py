"""What clients ask for: bodies of requests, and values made of their answers. Nothing is sent here."""

import dataclasses
import itertools
import ssl
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from flaxbert.errors import DataError

T = TypeVar("T")

Texts = str | Iterable[str]
"""One text, or several."""

Labels = list[dict[str, Any]]
"""Labels, entities or words with their scores, as the routes answer them."""


@dataclasses.dataclass(frozen=True)
class Call(Generic[T]):
    """One request.

    Attributes:
      path: Path of the route.
      body: What becomes JSON; None for requests without a body.
      read: Makes the value of the answer's JSON.
    """

    path: str
    body: Any
    read: Callable[[Any], T]


@dataclasses.dataclass(frozen=True)
class Batch(Generic[T]):
    """Inputs that may be sent in several requests.

    Attributes:
      path: Path of the route.
      key: Where the inputs stand in a body.
      inputs: The inputs.
      options: The rest of the body.
      read: Makes a value of the answer of one request.
      join: Makes one value of those of all requests.
    """

    path: str
    key: str
    inputs: Sequence[Any]
    options: Mapping[str, Any]
    read: Callable[[Any], Any]
    join: Callable[[list[Any]], T]

    def cut(self, prefix: str, size: int) -> list[Call[Any]]:
        """Returns the requests.

        Args:
          prefix: Path of the model.
          size: Most inputs of one.
        """
        parts = [self.inputs[start : start + size] for start in range(0, len(self.inputs), size)]
        return [Call(prefix + self.path, {self.key: part, **self.options}, self.read) for part in parts]


STREAM_HEADERS = {
    "content-type": "application/x-ndjson",
    "accept-encoding": "identity",
    "expect": "100-continue",
}
"""Headers of streams, whose bodies are not begun before the server takes or refuses them."""

LEAST_SECONDS = 0.01
"""Time that even the last try gets."""


def connection_options(base_url: str, api_key: str | None, tls: ssl.SSLContext) -> dict[str, Any]:
    """Returns arguments of ``httpx2.Client`` and ``AsyncClient``.

    Args:
      base_url: Where the server is.
      api_key: Its key, or None.
      tls: What is asked of encrypted connections.
    """
    headers = {"content-type": "application/json"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    return {"base_url": base_url, "headers": headers, "verify": tls}


def prefix_of(model: str | None) -> str:
    """Returns what stands before the paths of a model's routes.

    Args:
      model: Its name, or None.
    """
    return "" if model is None else f"/models/{urllib.parse.quote(model, safe='')}"


def served_models(answer: Any) -> list[dict[str, Any]]:
    """Returns the models of the answer of ``/models``.

    Args:
      answer: JSON.
    """
    return answer["models"]


def _as_list(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _pairs(first: Texts, second: Texts, names: str) -> list[tuple[str, str]]:
    firsts, seconds = _as_list(first), _as_list(second)
    if len(firsts) != len(seconds):
        raise DataError(f"There are {len(firsts)} and {len(seconds)} {names}, but each needs its own.")
    return list(zip(firsts, seconds, strict=True))


def _set(**options: Any) -> dict[str, Any]:
    """Returns the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def same(answer: Any) -> Any:
    """Returns an answer as it is.

    Args:
      answer: JSON.
    """
    return answer


def _chain(parts: list[Any]) -> list[Any]:
    return list(itertools.chain.from_iterable(parts))


def _array(rows: Any) -> np.ndarray:
    return np.asarray(rows, np.float32)


def _arrays(rows: Any) -> list[np.ndarray]:
    return [np.asarray(row, np.float32) for row in rows]


def _join_arrays(parts: list[Any]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _weights(rows: Any) -> list[dict[int, float]]:
    return [{entry["index"]: entry["value"] for entry in row} for row in rows]


def embed(texts: Texts, **options: Any) -> Batch[np.ndarray]:
    """Returns the requests of ``Client.embed``.

    Args:
      texts: The texts.
      **options: Further keys of the body; None leaves one out.
    """
    return Batch("/embed", "inputs", _as_list(texts), _set(**options), _array, _join_arrays)


def embed_tokens(texts: Texts, **options: Any) -> Batch[list[np.ndarray]]:
    """Returns the requests of ``Client.embed_tokens``.

    Args:
      texts: The texts.
      **options: As for ``embed``.
    """
    return Batch("/embed_all", "inputs", _as_list(texts), _set(**options), _arrays, _chain)


def embed_sparse(texts: Texts, **options: Any) -> Batch[list[dict[int, float]]]:
    """Returns the requests of ``Client.embed_sparse``.

    Args:
      texts: The texts.
      **options: As for ``embed``.
    """
    return Batch("/embed_sparse", "inputs", _as_list(texts), _set(**options), _weights, _chain)


def predict(texts: Texts, pairs: Texts | None, **options: Any) -> Batch[list[Labels]]:
    """Returns the requests of ``Client.predict``.

    Args:
      texts: The texts.
      pairs: Second texts, or None.
      **options: As for ``embed``.
    """
    together = [(text,) for text in _as_list(texts)] if pairs is None else _pairs(texts, pairs, "texts and pairs")
    return Batch("/predict", "inputs", together, _set(**options), same, _chain)


def entities(texts: Texts) -> Batch[list[Labels]]:
    """Returns the requests of ``Client.entities``.

    Args:
      texts: The texts.
    """
    return Batch("/ner", "inputs", _as_list(texts), {}, same, _chain)


def answer(questions: Texts, contexts: Texts, **parameters: Any) -> Batch[list[Any]]:
    """Returns the requests of ``Client.answer``.

    Args:
      questions: The questions.
      contexts: The text of each.
      **parameters: The route's parameters; None leaves one out.
    """
    inputs = [
        {"question": question, "context": context}
        for question, context in _pairs(questions, contexts, "questions and contexts")
    ]
    return Batch("/qa", "inputs", inputs, {"parameters": _set(**parameters)}, same, _chain)


def fill_mask(texts: Texts, **parameters: Any) -> Batch[list[Any]]:
    """Returns the requests of ``Client.fill_mask``.

    Args:
      texts: The texts.
      **parameters: As for ``answer``.
    """
    return Batch("/fill-mask", "inputs", _as_list(texts), {"parameters": _set(**parameters)}, same, _chain)


def zero_shot(texts: Texts, labels: Sequence[str], **parameters: Any) -> Batch[list[Labels]]:
    """Returns the requests of ``Client.zero_shot``.

    Args:
      texts: The texts.
      labels: The labels.
      **parameters: As for ``answer``.
    """
    options = {"parameters": _set(candidate_labels=list(labels), **parameters)}
    return Batch("/zero-shot", "inputs", _as_list(texts), options, same, _chain)


def tokenize(texts: Texts, **options: Any) -> Batch[list[Labels]]:
    """Returns the requests of ``Client.tokenize``.

    Args:
      texts: The texts.
      **options: As for ``embed``.
    """
    return Batch("/tokenize", "inputs", _as_list(texts), _set(**options), same, _chain)


def decode(ids: Iterable[Sequence[int]], **options: Any) -> Batch[list[str]]:
    """Returns the requests of ``Client.decode``.

    Args:
      ids: Token ids of each text.
      **options: As for ``embed``.
    """
    rows = [[int(number) for number in row] for row in ids]
    return Batch("/decode", "ids", rows, _set(**options), same, _chain)


def rerank(prefix: str, query: str, texts: Texts, **options: Any) -> Call[Labels]:
    """Returns the request of ``Client.rerank``.

    Args:
      prefix: Path of the model.
      query: The query.
      texts: The texts.
      **options: As for ``embed``.
    """
    return Call(f"{prefix}/rerank", {"query": query, "texts": _as_list(texts), **_set(**options)}, same)


def similarity(prefix: str, text: str, others: Texts, **parameters: Any) -> Call[np.ndarray]:
    """Returns the request of ``Client.similarity``.

    Args:
      prefix: Path of the model.
      text: The one.
      others: The others.
      **parameters: As for ``answer``.
    """
    inputs = {"source_sentence": text, "sentences": _as_list(others)}
    return Call(f"{prefix}/similarity", {"inputs": inputs, "parameters": _set(**parameters)}, _array)
