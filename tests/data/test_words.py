"""Where words begin, for WordPiece, byte pairs, unigrams and BERTweet, and by a segmenter."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flaxbert.data.words import segmented_starts, unspaced_tokens, word_table
from flaxbert.errors import ConfigError, DataError
from tests.weights.bertweet import bertweet


def fast(model, pre_tokenizer=None, special=("[CLS]", "[SEP]", "[MASK]", "[UNK]")):
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    names = ("cls_token", "sep_token", "mask_token", "unk_token")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(names, special, strict=True)))


def vocabulary(*tokens):
    return {token: number for number, token in enumerate(("[CLS]", "[SEP]", "[MASK]", "[UNK]", *tokens))}


def words(tokenizer, tokens):
    ids = np.array([tokenizer.convert_tokens_to_ids(token) for token in tokens])
    starts = word_table(tokenizer).word_starts(ids).tolist()
    grouped = []
    for token, start in zip(tokens, starts, strict=True):
        if start:
            grouped.append([])
        grouped[-1].append(token)
    return [" ".join(group) for group in grouped]


def test_word_pieces():
    known = vocabulary("play", "##ing", "##s", ",", "-", "on", "世", "界")
    tokenizer = fast(models.WordPiece(known, unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer())
    tokens = ["[CLS]", "play", "##ing", ",", "on", "-", "play", "##s", "世", "界", "[SEP]"]
    assert words(tokenizer, tokens) == ["[CLS]", "play ##ing", ",", "on", "-", "play ##s", "世", "界", "[SEP]"]


def test_byte_pairs():
    known = vocabulary("Ġplay", "ing", ",", "Ġ(", "x", "-", "ray", "'t", "Ġdon", "ä¸ĸ", "çķ", "Į")
    tokenizer = fast(models.BPE(known, []), pre_tokenizers.ByteLevel())
    tokens = ["[CLS]", "x", "ing", "Ġplay", "ing", ",", "Ġ(", "x", "-", "ray", "Ġdon", "'t", "ä¸ĸ", "ä¸ĸ", "[SEP]"]
    assert words(tokenizer, tokens) == [
        "[CLS]", "x ing", "Ġplay ing", ",", "Ġ(", "x", "-", "ray", "Ġdon 't", "ä¸ĸ", "ä¸ĸ", "[SEP]"
    ]  # fmt: skip
    assert words(tokenizer, ["Ġplay", "çķ", "Į"]) == ["Ġplay çķ Į"]  # parts of a character stay with what they follow


def test_unigrams():
    pieces = [(token, 0.0) for token in ("[CLS]", "[SEP]", "[MASK]", "[UNK]", "▁", "▁play", "ing", ".", "世界", "で")]
    tokenizer = fast(models.Unigram(pieces, 3), pre_tokenizers.Metaspace())
    tokens = ["[CLS]", "▁play", "ing", ".", "▁", "世界", "で", "[SEP]"]
    assert words(tokenizer, tokens) == ["[CLS]", "▁play ing", ".", "▁", "世界", "で", "[SEP]"]


def test_characters_of_scripts_without_blanks():
    tokenizer = fast(models.WordPiece(vocabulary("世", "##界", "play", "##ing", ",", "ฟ"), unk_token="[UNK]"))
    found = unspaced_tokens(tokenizer)
    assert {token for token, number in tokenizer.get_vocab().items() if found[number]} == {"世", "##界", "ฟ"}


def test_bertweet(tmp_path):
    tokenizer = bertweet(tmp_path)
    assert words(tokenizer, ["f@@", "ilm", "fine", "@USER", "f@@", "f@@", "a"]) == [
        "f@@ ilm",
        "fine",
        "@USER",
        "f@@ f@@ a",
    ]


def test_a_vocabulary_without_marks_is_refused():
    tokenizer = fast(models.WordLevel(vocabulary("play", "on"), unk_token="[UNK]"))
    with pytest.raises(ConfigError, match=r"marks neither.*masking\.unit: token"):
        word_table(tokenizer)


def test_every_row_begins_words_of_its_own():
    tokenizer = fast(models.WordPiece(vocabulary("a", "##b"), unk_token="[UNK]"))
    ids = np.array([[5, 4, 5], [5, 5, 0]])
    assert word_table(tokenizer).word_starts(ids).tolist() == [[True, True, False], [True, False, True]]


def test_words_of_a_segmenter():
    spans = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [5, 6]])
    starts = segmented_starts("模型训练 好", spans, lambda text: ["模型", "训练", "好"])
    assert starts.tolist() == [True, False, True, False, True]
    joined = segmented_starts("ab cd", np.array([[0, 4], [4, 5]]), lambda text: text.split())
    assert joined.tolist() == [True, False]  # a token over a border speaks for both words
    assert segmented_starts("", np.zeros((0, 2), np.int64), list).tolist() == []
    with pytest.raises(DataError, match="'训练' is the next word after '模型'"):
        segmented_starts("模型", np.array([[0, 2]]), lambda text: ["模型", "训练"])
