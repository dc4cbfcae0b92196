"""A smaller vocabulary for the texts of one purpose: which tokens they use, and the tokenizer that knows no others."""

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.errors import DataError

_BATCH = 1000
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
KINDS = ("WordPiece", "BPE", "Unigram")
"""Tokenizers whose vocabulary can be narrowed without changing how texts of kept tokens are cut."""


def _backend_json(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"{type(tokenizer).__name__} is no fast tokenizer, whose vocabulary could be made smaller.")
    settings = json.loads(backend.to_str())
    kind = settings["model"].get("type")
    if kind not in KINDS:
        raise DataError(
            f"The tokenizer's model is {kind}; a smaller vocabulary can be cut out of {', '.join(KINDS)} only."
        )
    return settings


def count_tokens(tokenizer: Any, texts: Iterable[str]) -> Int[np.ndarray, "vocab"]:
    """Returns how often each token occurs in texts.

    Args:
      tokenizer: A fast tokenizer of transformers.
      texts: The texts.

    Raises:
      DataError: There is no text, or the tokenizer is not one that can be narrowed.
    """
    _backend_json(tokenizer)
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, np.int64)
    texts = iter(texts)
    while batch := list(itertools.islice(texts, _BATCH)):
        encoded = tokenizer.backend_tokenizer.encode_batch(batch, add_special_tokens=False)
        ids = [token for encoding in encoded for token in encoding.ids]
        np.add.at(counts, np.asarray(ids, np.int64), 1)
    if not counts.any():
        raise DataError("There is no text whose tokens could be counted; name files that hold some.")
    return counts


def _is_basic(token: str, model: dict[str, Any]) -> bool:
    """Returns whether a token is a single character, at the start of a word or within one, or a byte."""
    if token in _BYTES:
        return True
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    inner = token.removeprefix(prefix) if prefix else token
    return len(inner) == 1 or (bool(suffix) and len(inner.removesuffix(suffix)) == 1)


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    split = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in split]


def _merged(pair: tuple[str, str], model: dict[str, Any]) -> str:
    return pair[0] + pair[1].removeprefix(model.get("continuing_subword_prefix") or "")


def _with_ancestors(kept: set[str], model: dict[str, Any]) -> set[str]:
    """Returns tokens with all that they are merged from, so that the same merges lead to them."""
    sources: dict[str, list[tuple[str, str]]] = {}
    for pair in _pairs(model):
        sources.setdefault(_merged(pair, model), []).append(pair)
    waiting, closed = list(kept), set(kept)
    while waiting:
        for pair in sources.get(waiting.pop(), ()):
            fresh = [token for token in pair if token not in closed]
            closed.update(fresh)
            waiting.extend(fresh)
    return closed


def _words(model: dict[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    return {entry[0]: number for number, entry in enumerate(vocabulary)}


def select_tokens(
    tokenizer: Any, counts: Int[np.ndarray, "vocab"], min_count: int = 1, num_first: int = 0
) -> Int[np.ndarray, "kept"]:
    """Chooses the tokens of a smaller vocabulary: those that texts use, and all that any other text may need.

    Kept are special and added tokens, single characters (and bytes), and of pairs of bytes all that a used token is merged from. So
    a text of used tokens is cut as before, and any other into smaller pieces.

    Args:
      tokenizer: A fast tokenizer of transformers.
      counts: How often each token occurs, from ``count_tokens``.
      min_count: Least number of occurrences of a token that is kept for its use.
      num_first: So many first tokens keep their numbers whatever they are.

    Returns:
      Ids of kept tokens, rising.

    Raises:
      DataError: The tokenizer is not one that can be narrowed.
    """
    settings = _backend_json(tokenizer)
    model, words = settings["model"], _words(settings["model"])
    kept = {word for word, number in words.items() if number < len(counts) and counts[number] >= min_count}
    kept |= {word for word in words if _is_basic(word, model)}
    if model.get("unk_token") in words:
        kept.add(model["unk_token"])
    if model["type"] == "BPE":
        kept = _with_ancestors(kept, model)
    ids = {words[word] for word in kept} | set(range(num_first)) | {int(n) for n in tokenizer.all_special_ids}
    ids |= {int(entry["id"]) for entry in settings["added_tokens"]}
    if model.get("unk_id") is not None:
        ids.add(int(model["unk_id"]))
    return np.asarray(sorted(ids), np.int64)


def _renumber(processor: Any, places: dict[int, int]) -> Any:
    """Returns the settings of a post-processor with new ids."""
    if not isinstance(processor, dict):
        return processor
    changed = dict(processor)
    for key in ("sep", "cls"):
        if isinstance(changed.get(key), list):
            changed[key] = [changed[key][0], places[changed[key][1]]]
    if processor.get("type") == "TemplateProcessing":
        changed["special_tokens"] = {
            name: {**entry, "ids": [places[number] for number in entry["ids"]]}
            for name, entry in processor["special_tokens"].items()
        }
    if "processors" in changed:
        changed["processors"] = [_renumber(entry, places) for entry in changed["processors"]]
    return changed


def _narrow_model(model: dict[str, Any], places: dict[int, int]) -> dict[str, Any]:
    words = sorted(_words(model).items(), key=lambda item: item[1])
    left = {word: places[number] for word, number in words if number in places}
    changed = dict(model)
    if isinstance(model["vocab"], dict):
        changed["vocab"] = left
    else:
        changed["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in places]
        if model.get("unk_id") is not None:
            changed["unk_id"] = places[model["unk_id"]]
    if model["type"] == "BPE":
        changed["merges"] = [
            list(pair) for pair in _pairs(model) if _merged(pair, model) in left and all(part in left for part in pair)
        ]
    return changed


def narrow_tokenizer(tokenizer: Any, kept: Sequence[int] | Int[np.ndarray, "kept"]) -> Any:
    """Returns a tokenizer that knows some tokens only, numbered anew in their order.

    Args:
      tokenizer: A fast tokenizer of transformers; it stays as it is.
      kept: Ids of the tokens, rising, from ``select_tokens``.

    Returns:
      The smaller tokenizer: token ``kept[i]`` of the old one is its token ``i``.

    Raises:
      DataError: The tokenizer is not one that can be narrowed.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    settings = _backend_json(tokenizer)
    places = {int(old): new for new, old in enumerate(kept)}
    settings["model"] = _narrow_model(settings["model"], places)
    settings["added_tokens"] = [{**entry, "id": places[entry["id"]]} for entry in settings["added_tokens"]]
    settings["post_processor"] = _renumber(settings["post_processor"], places)
    settings["padding"] = settings["truncation"] = None
    names = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    extra = [token for token in tokenizer.all_special_tokens if token not in names.values()]
    smaller = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(settings)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        **names,
        **({"extra_special_tokens": extra} if extra else {}),
    )
    wrong = [
        token for token, number in smaller.get_vocab().items() if tokenizer.convert_tokens_to_ids(token) != kept[number]
    ]
    if wrong:
        raise DataError(f"The tokenizer's files number '{wrong[0]}' in a way that a smaller vocabulary can not follow.")
    return smaller


def check_same_pieces(
    tokenizer: Any, smaller: Any, kept: Sequence[int] | Int[np.ndarray, "kept"], texts: Sequence[str]
) -> None:
    """Checks that a narrowed tokenizer cuts texts as the whole one does.

    Args:
      tokenizer: The whole tokenizer.
      smaller: What ``narrow_tokenizer`` made of it.
      kept: Ids of its tokens in the whole one.
      texts: Texts whose tokens were all kept.

    Raises:
      DataError: A text is cut differently; quotes it.
    """
    pairs = (source.backend_tokenizer.encode_batch(list(texts)) for source in (tokenizer, smaller))
    for text, whole, narrow in zip(texts, *pairs, strict=True):
        if whole.ids != [int(kept[number]) for number in narrow.ids]:
            raise DataError(
                f"The smaller vocabulary cuts '{text[:60]}' differently; this tokenizer can not be narrowed."
            )
