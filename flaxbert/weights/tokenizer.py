"""Loading tokenizers without torch and without code from the model folder."""

import contextlib
import json
import os
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from flaxbert.architecture import ModelConfig
from flaxbert.errors import ConfigError, WeightsError
from flaxbert.weights.readers import read_json_object
from flaxbert.weights.sentence_transformers import transformer_folder

_CLASS_OF_FILE: dict[str, str] = {
    "bpe.codes": "BertweetTokenizer",
    "spiece.model": "AlbertTokenizer",
    "sentencepiece.bpe.model": "XLMRobertaTokenizer",
    "spm.model": "DebertaV2Tokenizer",
    "vocab.json": "RobertaTokenizer",
    "vocab.txt": "BertTokenizer",
}
"""The tokenizer that a file belongs to where nothing else says it; the first file that is there decides."""

_CLASS_OF_FAMILY: dict[tuple[str, str], str] = {
    ("camembert", "sentencepiece.bpe.model"): "CamembertTokenizer",
    ("deberta", "vocab.json"): "DebertaTokenizer",
    ("mpnet", "vocab.txt"): "MPNetTokenizer",
}
"""The same where a family has a tokenizer of its own."""

_WORDPIECE = frozenset({"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "ConvBertTokenizer"})
_KNOWN = frozenset({*_CLASS_OF_FILE.values(), *_CLASS_OF_FAMILY.values(), *_WORDPIECE})

TOKENIZER_FILES = ("tokenizer.json", *_CLASS_OF_FILE)
"""A folder has a tokenizer if it has one of these."""

_ANY_MODEL = ModelConfig(vocab_size=1 << 31)

_NO_LIMIT = 100_000


def looks_cased(vocabulary: Iterator[str]) -> bool:
    """Returns whether a vocabulary has words with capital letters, special tokens such as ``[CLS]`` aside.

    Args:
      vocabulary: The words.
    """
    return any(re.search(r"[A-Z]", word) and not re.fullmatch(r"\[.*\]|<.*>", word) for word in vocabulary)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _from_vocabulary(folder: pathlib.Path, settings: dict[str, Any]) -> Any:
    from transformers import BertTokenizer

    file = folder / "vocab.txt"
    try:
        words = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file} can not be read as UTF-8: {error}.") from error
    lower_case = settings.pop("do_lower_case", None)
    if lower_case is None:
        lower_case = not looks_cased(iter(words))
        warnings.warn(
            f"{folder} does not say whether its tokenizer lower-cases (do_lower_case in tokenizer_config.json). Its "
            f"vocabulary has {'no ' if lower_case else ''}words with capitals, so do_lower_case is {str(lower_case).lower()}.",
            stacklevel=4,
        )
    kept = {
        key: value
        for key, value in settings.items()
        if key in ("tokenize_chinese_chars", "strip_accents", "model_max_length") or key.endswith("_token")
    }
    return BertTokenizer(vocab=str(file), do_lower_case=lower_case, **kept)


def _class_name(folder: pathlib.Path, settings: Mapping[str, Any], config: ModelConfig) -> str:
    declared = str(settings.get("tokenizer_class") or config.extra.get("tokenizer_class") or "").removesuffix("Fast")
    file = next(name for name in _CLASS_OF_FILE if (folder / name).is_file())
    by_file = _CLASS_OF_FAMILY.get((config.family, file), _CLASS_OF_FILE[file])
    return declared if declared in _KNOWN else by_file


def _from_files(folder: pathlib.Path, settings: Mapping[str, Any], config: ModelConfig) -> Any:
    """Builds the tokenizer of a folder without tokenizer.json."""
    import transformers

    name = _class_name(folder, settings, config)
    if name in _WORDPIECE:
        return _from_vocabulary(folder, dict(settings))
    options: dict[str, Any] = {}
    if name == "BertweetTokenizer" and "normalization" not in settings:
        options["normalization"] = True
    return getattr(transformers, name).from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False, **options
    )


def _from_json(folder: pathlib.Path, settings: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if settings and (folder / "config.json").is_file():
        return AutoTokenizer.from_pretrained(str(folder), use_fast=True, trust_remote_code=False, local_files_only=True)
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **_special_tokens(folder, settings))


def _load(folder: pathlib.Path, config: ModelConfig) -> Any:
    settings_file = folder / "tokenizer_config.json"
    settings = read_json_object(settings_file) if settings_file.is_file() else {}
    if "auto_map" in settings:
        warnings.warn(f"{settings_file} asks for code of its own (auto_map), which flaxbert never runs.", stacklevel=3)
    whole = (folder / "tokenizer.json").is_file()
    try:
        return _from_json(folder, settings) if whole else _from_files(folder, settings, config)
    except (OSError, ValueError, ImportError, KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"The tokenizer of {folder} can not be loaded: {error}") from error
    except Exception as error:  # tokenizers and protobuf raise exceptions of no common kind for malformed files
        if type(error) is not Exception and type(error).__module__.split(".")[0] not in ("google", "sentencepiece"):
            raise
        raise WeightsError(f"The tokenizer files of {folder} are malformed: {error}") from error


def _special_tokens(folder: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, str]:
    file = folder / "special_tokens_map.json"
    values = read_json_object(file) if file.is_file() else {k: v for k, v in settings.items() if k.endswith("_token")}
    named = {key: value.get("content") if isinstance(value, dict) else value for key, value in values.items() if value}
    found = {key: value for key, value in named.items() if isinstance(value, str)}
    if found:
        return found
    words = json.dumps(read_json_object(folder / "tokenizer.json"))
    usual = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    return {f"{key}_token": token for key, token in usual.items() if json.dumps(token) in words}


def load_tokenizer(folder: str | pathlib.Path, config: ModelConfig) -> Any:
    """Loads the tokenizer of a model folder.

    Padding and truncation that ``tokenizer.json`` has switched on are switched off: batches pad and truncate as told.

    Args:
      folder: A model folder of Hugging Face or sentence-transformers layout.
      config: Architecture, for the size of the vocabulary and the longest input.

    Returns:
      A tokenizer of transformers whose ``model_max_length`` the model can take, fast where there is a fast one (BERTweet has
      none); None where the folder has none.

    Raises:
      WeightsError: The tokenizer can not be loaded, or knows more tokens than the model.
    """
    folder = transformer_folder(pathlib.Path(folder))
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with _quiet():
        tokenizer = _load(folder, config)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    check_vocabulary(tokenizer, config, folder)
    limit = tokenizer.model_max_length
    known = isinstance(limit, (int, float)) and 0 < limit < _NO_LIMIT
    tokenizer.model_max_length = min(int(limit), config.max_length) if known else config.max_length
    return tokenizer


def tokenizer_alone(folder: str | pathlib.Path) -> Any:
    """Loads a tokenizer whose model does not matter, such as the one that a corpus is prepared with.

    Args:
      folder: A folder of a model or of a tokenizer.

    Returns:
      A tokenizer of transformers.

    Raises:
      ConfigError: The folder holds no tokenizer.
      WeightsError: The tokenizer can not be loaded.
    """
    tokenizer = load_tokenizer(folder, _ANY_MODEL)
    if tokenizer is None:
        raise ConfigError(
            f"{folder} holds no tokenizer (tokenizer.json, vocab.txt…); train one with flaxbert tokenizer train."
        )
    return tokenizer


def check_vocabulary(tokenizer: Any, config: ModelConfig, folder: pathlib.Path) -> None:
    """Refuses a tokenizer that gives ids for which the model has no embedding.

    Args:
      tokenizer: A tokenizer of transformers.
      config: Architecture.
      folder: Where the tokenizer came from, for the message.

    Raises:
      WeightsError: The largest id of the tokenizer lies outside the word embedding.
    """
    word, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= config.vocab_size:
        raise WeightsError(
            f"The tokenizer of {folder} has {largest + 1} tokens (the last is '{word}'), but the model's vocabulary has "
            f"{config.vocab_size}. Tokenizer and weights are not of one model."
        )
