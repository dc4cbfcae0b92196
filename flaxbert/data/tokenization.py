"""Texts to token ids in flat arrays."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, Num

from flaxbert.config import DataConfig
from flaxbert.data.tables import shorten
from flaxbert.errors import DataError

_CHUNK_EXAMPLES = 2048

Where = Callable[[int], str]


class TruncationWarning(UserWarning):
    """Inputs were longer than the most tokens allowed and lost their ends."""


@dataclasses.dataclass(frozen=True)
class TokenizedExamples:
    """Token ids of many examples, one after the other in flat arrays.

    Attributes:
      input_ids: Ids of all tokens, special ones included.
      token_type_ids: Token types of all tokens, or None where all are 0.
      offsets: Example ``i`` has the tokens from ``offsets[i]`` to ``offsets[i + 1]``.
      truncated: Whether each example lost tokens.
      labels: One row per example, or None.
      pad_token_id: Id that fills batches.
      token_values: Further numbers of all tokens by their name in a batch, such as ``labels`` of tokens or ``entity_mask``.
      rows_per_example: Inputs that make up one example side by side, such as the choices of a question; ``offsets`` and
        ``truncated`` count inputs, the choices of an example one after the other.
    """

    input_ids: Int32[np.ndarray, "tokens"]
    token_type_ids: Int32[np.ndarray, "tokens"] | None
    offsets: Int[np.ndarray, "boundaries"]
    truncated: Bool[np.ndarray, "inputs"]
    labels: Num[np.ndarray, "examples ..."] | None = None
    pad_token_id: int = 0
    token_values: Mapping[str, Int32[np.ndarray, "tokens"]] = dataclasses.field(default_factory=dict)
    rows_per_example: int = 1

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // self.rows_per_example

    @property
    def lengths(self) -> Int[np.ndarray, "examples"]:
        """Number of tokens of each example; of the longest of its inputs where it has several."""
        lengths = np.diff(self.offsets)
        return lengths if self.rows_per_example == 1 else lengths.reshape(-1, self.rows_per_example).max(axis=1)

    @property
    def num_truncated(self) -> int:
        """Number of examples that lost tokens."""
        return int(self.truncated.reshape(-1, self.rows_per_example).any(axis=1).sum())

    def with_labels(self, labels: Num[np.ndarray, "examples ..."]) -> "TokenizedExamples":
        """Returns the examples with labels.

        Args:
          labels: One row per example.

        Raises:
          DataError: The number of rows is another.
        """
        if len(labels) != len(self):
            raise DataError(f"There are {len(labels)} labels for {len(self)} examples; give one per example.")
        return dataclasses.replace(self, labels=labels)


def tokenize(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    max_length: int,
    truncation: str = "longest_first",
    where: Where | None = None,
    warn: bool = True,
) -> TokenizedExamples:
    """Tokenizes texts or pairs of texts, with special tokens and without padding.

    What the tokenizer's own file says about padding and truncation is switched off for the call.

    Args:
      tokenizer: A tokenizer of transformers, or ``tokenizers.Tokenizer``.
      texts: The texts, or the first texts of pairs.
      pairs: The second texts, or None.
      max_length: Most tokens of one input, special tokens included.
      truncation: longest_first, only_first, only_second, or error to refuse longer inputs.
      where: Returns the place of an example for messages; by default its number.
      warn: Whether to warn, once and with counts, if inputs were truncated.

    Raises:
      DataError: A text holds lone surrogates, or an input can not be brought to ``max_length`` as told.
    """
    place: Where = where or (lambda index: f"input {index}")
    if pairs is not None and len(pairs) != len(texts):
        raise DataError(f"There are {len(texts)} first and {len(pairs)} second texts; give as many of each.")
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "encode_batch_fast"):
        parts = list(_encode_chunks(backend, texts, pairs, max_length, truncation, place))
    else:
        parts = list(_encode_slowly(tokenizer, texts, pairs, max_length, truncation, place))
    ids, types, lengths, truncated = (
        (list(column) for column in zip(*parts, strict=True)) if parts else ([], [], [], [])
    )
    token_types = _concatenate(types, np.int32)
    examples = TokenizedExamples(
        input_ids=_concatenate(ids, np.int32),
        token_type_ids=token_types if token_types.any() else None,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(_concatenate(lengths, np.int64))]),
        truncated=_concatenate(truncated, np.bool_),
        pad_token_id=pad_token_id(tokenizer),
    )
    if warn:
        warn_truncated({"": examples}, max_length, truncation)
    return examples


def warn_truncated(splits: dict[str, TokenizedExamples], max_length: int, truncation: str) -> None:
    """Warns once, with the counts of all splits, if inputs were truncated.

    Args:
      splits: Examples by the name of their split.
      max_length: Most tokens of one input.
      truncation: How they were truncated.
    """
    counts = [
        f"{examples.num_truncated:,} of {len(examples):,} {name + ' ' if name else ''}inputs "
        f"({100 * examples.num_truncated / len(examples):.1f} %)"
        for name, examples in splits.items()
        if examples.num_truncated
    ]
    if counts:
        warnings.warn(
            f"{', '.join(counts)} have more than {max_length} tokens and were truncated ({truncation}). Raise "
            "data.max_length to keep more of them, or set data.truncation: error to refuse them.",
            TruncationWarning,
            stacklevel=3,
        )


def pad_token_id(tokenizer: Any) -> int:
    """Returns the id that fills batches: the tokenizer's padding token, or 0 where it has none."""
    found = getattr(tokenizer, "pad_token_id", None)
    if found is None and hasattr(tokenizer, "token_to_id"):
        ids = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        found = next((number for number in ids if number is not None), None)
    return int(found or 0)


def effective_max_length(config: DataConfig, model_max_length: int = 0) -> int:
    """Returns the most tokens of one input.

    Args:
      config: Gives ``max_length``; 0 stands for the model's maximum.
      model_max_length: Most tokens that the model takes; 0 if not known.

    Raises:
      DataError: ``max_length`` is over the model's maximum, or neither is known.
    """
    if config.max_length == 0:
        if model_max_length <= 0:
            raise DataError(
                "data.max_length is 0, but the model states no maximum; set data.max_length, for example 128."
            )
        return model_max_length
    if 0 < model_max_length < config.max_length:
        raise DataError(
            f"data.max_length is {config.max_length}, but the model takes {model_max_length} tokens at most; set "
            f"data.max_length to {model_max_length} or less, or to 0 for the model's maximum."
        )
    return config.max_length


def _concatenate(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([*parts, np.empty(0, dtype)]).astype(dtype, copy=False)


def _chunks(num_examples: int) -> Iterator[range]:
    for start in range(0, num_examples, _CHUNK_EXAMPLES):
        yield range(start, min(start + _CHUNK_EXAMPLES, num_examples))


@contextmanager
def tokenizer_settings(backend: Any, max_length: int, truncation: str, stride: int = 0) -> Iterator[None]:
    """Switches padding off and truncation to what is asked for, and back afterwards.

    Args:
      backend: A ``tokenizers.Tokenizer``.
      max_length: Most tokens of one input, special tokens included.
      truncation: As for ``tokenize``.
      stride: Tokens that the parts of an input that is too long share.

    Yields:
      Nothing.
    """
    padding, usual = backend.padding, backend.truncation
    backend.no_padding()
    if truncation == "error":
        backend.no_truncation()
    else:
        direction = (usual or {}).get("direction", "right")
        backend.enable_truncation(max_length, stride=stride, strategy=truncation, direction=direction)
    try:
        yield
    finally:
        backend.no_truncation()
        if usual is not None:
            backend.enable_truncation(**usual)
        if padding is not None:
            backend.enable_padding(**padding)


def _encode_chunks(
    backend: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int, truncation: str, where: Where
) -> Iterator[tuple[np.ndarray, ...]]:
    if truncation != "error":
        require_room(max_length, backend.num_special_tokens_to_add(pairs is not None), truncation)
    with tokenizer_settings(backend, max_length, truncation):
        for chunk in _chunks(len(texts)):
            inputs: Any = [texts[index] for index in chunk]
            if pairs is not None:
                inputs = list(zip(inputs, [pairs[index] for index in chunk], strict=True))
            try:
                encodings = backend.encode_batch_fast(inputs)
            except Exception as error:
                raise explain_failure(backend, inputs, chunk, where, max_length, error, truncation) from error
            lengths = np.array([len(encoding) for encoding in encodings], np.int64)
            if truncation == "error":
                _refuse_long(lengths, chunk, max_length, where)
            ids = np.array([number for encoding in encodings for number in encoding.ids], np.int32)
            if pairs is None and not any(encodings[0].type_ids):
                types = np.zeros(len(ids), np.int32)
            else:
                types = np.array([number for encoding in encodings for number in encoding.type_ids], np.int32)
            # Only an input that was cut has the full length: the costly look at what overflowed is for those alone.
            cut = [length >= max_length and bool(e.overflowing) for e, length in zip(encodings, lengths, strict=True)]
            yield ids, types, lengths, np.array(cut, np.bool_)


def _encode_slowly(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int, truncation: str, where: Where
) -> Iterator[tuple[np.ndarray, ...]]:
    """Encodes with a tokenizer that is written in Python: once whole, and the long inputs again with truncation."""
    for chunk in _chunks(len(texts)):
        ids: list[list[int]] = []
        types: list[list[int]] = []
        cut: list[bool] = []
        for index in chunk:
            pair = None if pairs is None else pairs[index]
            refuse_surrogates(texts[index], pair, where(index))
            encoded = tokenizer(
                texts[index], pair, return_token_type_ids=True, padding=False, truncation=False, verbose=False
            )
            cut.append(len(encoded["input_ids"]) > max_length)
            if cut[-1]:
                if truncation == "error":
                    _refuse_long(np.array([len(encoded["input_ids"])]), range(index, index + 1), max_length, where)
                encoded = tokenizer(
                    texts[index],
                    pair,
                    return_token_type_ids=True,
                    padding=False,
                    truncation=truncation,
                    max_length=max_length,
                )
                if len(encoded["input_ids"]) > max_length:
                    raise DataError(too_long_for_strategy(where(index), max_length, truncation))
            ids.append(list(encoded["input_ids"]))
            types.append(list(encoded["token_type_ids"]))
        lengths = np.array([len(numbers) for numbers in ids], np.int64)
        flat = [np.array([number for part in column for number in part], np.int32) for column in (ids, types)]
        yield flat[0], flat[1], lengths, np.array(cut, np.bool_)


def require_room(max_length: int, num_special_tokens: int, truncation: str) -> None:
    """Refuses a length that special tokens alone fill.

    Args:
      max_length: Most tokens of one input.
      num_special_tokens: Special tokens of every input.
      truncation: How inputs are cut, for the message.

    Raises:
      DataError: There is no room.
    """
    if max_length <= num_special_tokens:
        raise DataError(
            f"data.max_length is {max_length}, but special tokens alone take {num_special_tokens}, which leaves no room for "
            f"the text ({truncation}); raise data.max_length."
        )


def _refuse_long(lengths: Int[np.ndarray, "chunk"], chunk: range, max_length: int, where: Where) -> None:
    long = np.flatnonzero(lengths > max_length)
    if len(long):
        raise DataError(
            f"{where(chunk[int(long[0])])}: the input has {int(lengths[long[0]])} tokens, more than data.max_length "
            f"{max_length}, and data.truncation is error. Shorten it, raise data.max_length, or set data.truncation: "
            "longest_first."
        )


def refuse_surrogates(text: str, pair: str | None, where: str) -> None:
    """Refuses text that is no valid Unicode.

    Args:
      text: A text.
      pair: A second one, or None.
      where: Its place, for the message.

    Raises:
      DataError: One of them holds a lone surrogate.
    """
    for part in (text, pair or ""):
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: the text {shorten(part)} holds the lone surrogate U+{ord(part[error.start]):04X} at character "
                f"{error.start}, which is no valid Unicode. Clean it with text.encode('utf-8', 'replace').decode('utf-8'), or "
                "read the file with the encoding it was written in."
            ) from error


def too_long_for_strategy(where: str, max_length: int, truncation: str) -> str:
    """Returns the message for an input that stays too long, because the text that is not cut fills it.

    Args:
      where: Its place.
      max_length: Most tokens of one input.
      truncation: As for ``tokenize``.
    """
    kept = {"only_second": "first", "only_first": "second"}.get(truncation, "other")
    return (
        f"{where}: data.truncation {truncation} can not bring the input to {max_length} tokens, because the {kept} text "
        "alone is too long; set data.truncation: longest_first, or raise data.max_length."
    )


def explain_failure(
    backend: Any,
    inputs: Sequence[Any],
    chunk: range,
    where: Where,
    max_length: int,
    error: Exception,
    truncation: str = "only_second",
) -> DataError:
    """Finds the input of a failed chunk that the tokenizer refuses, and returns an error that says why.

    Args:
      backend: A ``tokenizers.Tokenizer``.
      inputs: Texts or pairs of the chunk.
      chunk: Their numbers.
      where: Returns the place of an input.
      max_length: Most tokens of one input.
      error: What the tokenizer raised for the chunk.
      truncation: As for ``tokenize``.
    """
    for value, index in zip(inputs, chunk, strict=True):
        text, pair = value if isinstance(value, tuple) else (value, None)
        refuse_surrogates(text, pair, where(index))
        try:
            backend.encode_batch_fast([value])
        except Exception as single:  # noqa: BLE001  the library raises Exception itself; it is turned into our error
            if "too short" in str(single):
                return DataError(too_long_for_strategy(where(index), max_length, truncation))
            return DataError(
                f"{where(index)}: the tokenizer refuses {shorten(value)} ({single}). Mend or remove the text."
            )
    return DataError(f"The tokenizer failed on {where(chunk[0])} to {where(chunk[-1])}: {error}")
