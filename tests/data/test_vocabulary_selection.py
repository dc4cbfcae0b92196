"""Smaller vocabularies: texts of kept tokens are cut as before, and any other text still has tokens."""

import numpy as np
import pytest

from flaxbert.config import TokenizerConfig
from flaxbert.data.tokenizer_training import train_tokenizer
from flaxbert.data.vocabulary_selection import (
    check_same_pieces,
    count_tokens,
    narrow_tokenizer,
    select_tokens,
)
from flaxbert.errors import DataError

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "a quicker, browner fox: jumping and jumped",
    "dogs and foxes are lazier than the laziest",
] * 3
USED = ["the brown fox jumped", "lazy foxes"]
KINDS = ["wordpiece", "bpe", "unigram"]


def tokenizer_of(kind):
    return train_tokenizer(TEXTS, TokenizerConfig(kind=kind, vocab_size=400 if kind == "bpe" else 120))


def narrowed(tokenizer, texts=USED, **options):
    kept = select_tokens(tokenizer, count_tokens(tokenizer, texts), **options)
    return kept, narrow_tokenizer(tokenizer, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_used_texts_have_the_same_tokens_in_fewer_rows(kind):
    tokenizer = tokenizer_of(kind)
    kept, smaller = narrowed(tokenizer)
    assert len(smaller.get_vocab()) == len(kept) < len(tokenizer.get_vocab())
    assert sorted(smaller.get_vocab().values()) == list(range(len(kept)))
    for text in USED:
        assert smaller.tokenize(text) == tokenizer.tokenize(text)
    whole, narrow = (source(USED[0], USED[1]) for source in (tokenizer, smaller))
    assert [int(kept[number]) for number in narrow["input_ids"]] == whole["input_ids"]
    assert narrow.get("token_type_ids") == whole.get("token_type_ids")
    check_same_pieces(tokenizer, smaller, kept, USED)
    for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"):
        assert getattr(smaller, name) == getattr(tokenizer, name)
    assert smaller.decode(smaller(USED[0])["input_ids"], skip_special_tokens=True) == USED[0]


@pytest.mark.parametrize("kind", KINDS)
def test_any_other_text_still_has_tokens_and_says_the_same(kind):
    tokenizer = tokenizer_of(kind)
    _, smaller = narrowed(tokenizer)
    other = "the quicker dogs are browner than laziest"
    ids = smaller(other)["input_ids"]
    assert smaller.unk_token_id not in ids
    assert smaller.decode(ids, skip_special_tokens=True) == other
    assert len(ids) > len(tokenizer(other)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_comes_back(kind, tmp_path):
    from transformers import PreTrainedTokenizerFast

    _, smaller = narrowed(tokenizer_of(kind))
    smaller.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again(USED[0])["input_ids"] == smaller(USED[0])["input_ids"]


def test_rare_tokens_go_where_told_and_first_ones_stay():
    tokenizer = tokenizer_of("wordpiece")
    counts = count_tokens(tokenizer, [*USED, "lazy dog"])
    words = tokenizer.convert_ids_to_tokens(select_tokens(tokenizer, counts, min_count=2))
    assert "lazy" in words
    assert "dog" not in words
    assert select_tokens(tokenizer, counts, 2, 20).tolist()[:20] == list(range(20))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("bert-base-uncased-vocab.txt", "vocab.txt"),
        ("albert-spiece.model", "spiece.model"),
        ("roberta-vocab.json", "vocab.json"),
    ],
)
def test_published_vocabularies_are_narrowed(file, name, test_data, tmp_path):
    import json
    import shutil

    from flaxbert.architecture import ModelConfig
    from flaxbert.weights.tokenizer import load_tokenizer

    family = {"vocab.txt": "bert", "spiece.model": "albert", "vocab.json": "roberta"}[name]
    shutil.copyfile(test_data / "tokenizers" / file, tmp_path / name)
    if family == "roberta":
        shutil.copyfile(test_data / "tokenizers" / "roberta-merges.txt", tmp_path / "merges.txt")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": family != "roberta"}))
    tokenizer = load_tokenizer(tmp_path, ModelConfig(family=family, vocab_size=300_000))
    texts = [
        "A fine film, and a remarkably well-made one.",
        "Zürich's naïve café: 3.14 €!",
        "  two  spaces\tand\ttabs ",
    ]
    kept, smaller = narrowed(tokenizer, texts, num_first=2)
    assert len(kept) < 0.6 * len(tokenizer.get_vocab())
    check_same_pieces(tokenizer, smaller, kept, texts)
    other = "Unforeseeable vocabulary shrinkage"
    decoded = smaller.decode(smaller(other)["input_ids"], skip_special_tokens=True)
    assert decoded == (other if family == "roberta" else other.lower())


def test_what_can_not_be_narrowed_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]")))
    with pytest.raises(DataError, match="WordLevel"):
        count_tokens(words, ["a"])
    with pytest.raises(DataError, match="no fast tokenizer"):
        count_tokens(object(), ["a"])
    for texts in ([], ["", "  "]):
        with pytest.raises(DataError, match="no text"):
            count_tokens(tokenizer_of("wordpiece"), texts)


def test_a_text_that_is_cut_differently_is_quoted():
    tokenizer = tokenizer_of("wordpiece")
    counts = np.zeros(len(tokenizer.get_vocab()), np.int64)
    kept = select_tokens(tokenizer, counts)
    with pytest.raises(DataError, match="cuts 'the brown fox jumped' differently"):
        check_same_pieces(tokenizer, narrow_tokenizer(tokenizer, kept), kept, USED)
