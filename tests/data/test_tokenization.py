"""Token ids equal the tokenizer's own, truncation is counted, and what can not be tokenized is named."""

import warnings

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from flaxbert.config import DataConfig
from flaxbert.data.tokenization import (
    TokenizedExamples,
    TruncationWarning,
    effective_max_length,
    pad_token_id,
    tokenize,
)
from flaxbert.errors import DataError


def ids_of(examples, index):
    return examples.input_ids[examples.offsets[index] : examples.offsets[index + 1]].tolist()


def types_of(examples, index):
    return examples.token_type_ids[examples.offsets[index] : examples.offsets[index + 1]].tolist()


class SlowTokenizer:
    """A tokenizer in Python that is called as those of transformers are: words are their lengths, 0 stands around."""

    pad_token_id = 9

    def __call__(self, text, pair=None, *, truncation, max_length=0, **options):
        first, second = [len(word) for word in text.split()], [len(word) for word in (pair or "").split()]
        if truncation:
            while len(first) + len(second) + 2 > max_length and (second if truncation == "only_second" else first):
                (second if truncation == "only_second" else first).pop()
        ids = [0, *first, *second, 0]
        return {
            "input_ids": ids,
            "token_type_ids": [0] * (len(first) + 1) + [1] * (len(second) + 1 if pair else 0) or ids,
        }


def test_ids_lie_one_after_the_other(tokenizer):
    examples = tokenize(tokenizer, ["a b", "Good", "zzz c"], max_length=10)
    assert [ids_of(examples, index) for index in range(3)] == [[2, 4, 5, 3], [2, 11, 3], [2, 1, 6, 3]]
    assert examples.offsets.tolist() == [0, 4, 7, 11]
    assert examples.lengths.tolist() == [4, 3, 4]
    assert examples.token_type_ids is None
    assert (len(examples), examples.num_truncated, examples.input_ids.dtype) == (3, 0, np.int32)


def test_pairs_have_token_types(tokenizer):
    examples = tokenize(tokenizer, ["a", "b c"], ["d", "e"], max_length=10)
    assert ids_of(examples, 0) == [2, 4, 3, 7, 3]
    assert types_of(examples, 1) == [0, 0, 0, 0, 1, 1]


def test_nothing_gives_nothing(tokenizer):
    examples = tokenize(tokenizer, [], max_length=10)
    assert (len(examples), examples.offsets.tolist()) == (0, [0])


def test_padding_and_truncation_of_the_file_are_off_during_the_call_and_on_again_afterwards(tokenizer):
    stored = Tokenizer.from_str(tokenizer.to_str())
    stored.enable_padding(length=8, pad_id=0)
    stored.enable_truncation(3)
    padding, truncation = stored.padding, stored.truncation
    examples = tokenize(stored, ["a b c d"], max_length=10)
    assert ids_of(examples, 0) == [2, 4, 5, 6, 7, 3]
    assert (stored.padding, stored.truncation) == (padding, truncation)


def test_truncation_is_counted_and_warned_of_once(tokenizer):
    with pytest.warns(TruncationWarning, match=r"2 of 4 inputs \(50\.0 %\) have more than 4 tokens") as caught:
        examples = tokenize(tokenizer, ["a b c", "a b", "a", "a b c d"], max_length=4)
    assert len(caught) == 1
    assert examples.truncated.tolist() == [True, False, False, True]
    assert ids_of(examples, 3) == [2, 4, 5, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokenize(tokenizer, ["a b c"], max_length=4, warn=False).num_truncated == 1


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [
        ("longest_first", [2, 4, 5, 3, 4, 5, 3]),
        ("only_first", [2, 4, 3, 4, 5, 6, 3]),
        ("only_second", [2, 4, 5, 6, 3, 4, 3]),
    ],
)
def test_pairs_are_truncated_as_told(tokenizer, truncation, expected):
    examples = tokenize(tokenizer, ["a b c"], ["a b c"], max_length=7, truncation=truncation, warn=False)
    assert ids_of(examples, 0) == expected
    assert examples.num_truncated == 1


def test_what_can_not_be_truncated_as_told_is_named(tokenizer):
    with pytest.raises(
        DataError, match=r"a\.csv, line 1: data\.truncation only_second can not .* the first text alone"
    ):
        tokenize(
            tokenizer,
            ["a", "a b c d e"],
            ["a", "b"],
            max_length=6,
            truncation="only_second",
            where="a.csv, line {}".format,
        )
    with pytest.raises(DataError, match="special tokens alone take 2"):
        tokenize(tokenizer, ["a"], max_length=2)
    with pytest.raises(DataError, match=r"input 1: the input has 5 tokens, more than data\.max_length 4"):
        tokenize(tokenizer, ["a", "a b c"], max_length=4, truncation="error")


def test_a_refused_call_leaves_the_tokenizer_as_it_was(tokenizer):
    before = (tokenizer.padding, tokenizer.truncation)
    with pytest.raises(DataError):
        tokenize(tokenizer, ["a b c"], max_length=4, truncation="error")
    assert (tokenizer.padding, tokenizer.truncation) == before


@pytest.mark.parametrize("slow", [False, True])
def test_lone_surrogates_are_named_with_their_place(tokenizer, slow):
    chosen = SlowTokenizer() if slow else tokenizer
    with pytest.raises(DataError, match=r"input 2: the text .* lone surrogate U\+D800 at character 1"):
        tokenize(chosen, ["a", "b", "x\ud800y"], max_length=10)
    with pytest.raises(DataError, match=r"input 0: .* lone surrogate U\+DC00"):
        tokenize(chosen, ["a"], ["\udc00"], max_length=10)


def test_tokenizers_written_in_python_are_used_too():
    with pytest.warns(TruncationWarning, match="1 of 2 inputs"):
        examples = tokenize(SlowTokenizer(), ["aa b", "a b c d e"], ["ccc", "d"], max_length=6, truncation="only_first")
    assert ids_of(examples, 0) == [0, 2, 1, 3, 0]
    assert ids_of(examples, 1) == [0, 1, 1, 1, 1, 0]
    assert types_of(examples, 0) == [0, 0, 0, 1, 1]
    assert examples.pad_token_id == 9
    with pytest.raises(DataError, match="input 0: the input has 7 tokens"):
        tokenize(SlowTokenizer(), ["a b c d e"], max_length=6, truncation="error")
    with pytest.raises(DataError, match="only_second can not bring"):
        tokenize(SlowTokenizer(), ["a b c d e f g"], ["d"], max_length=6, truncation="only_second")


def test_numbers_of_texts_and_labels_must_agree(tokenizer):
    with pytest.raises(DataError, match="2 first and 1 second texts"):
        tokenize(tokenizer, ["a", "b"], ["c"], max_length=8)
    with pytest.raises(DataError, match="1 labels for 2 examples"):
        tokenize(tokenizer, ["a", "b"], max_length=8).with_labels(np.zeros(1, np.int32))


def test_the_padding_token_is_found(tokenizer):
    assert pad_token_id(tokenizer) == 0
    assert pad_token_id(Tokenizer(models.WordLevel({"x": 0, "<pad>": 1}, unk_token="x"))) == 1


def test_the_maximum_of_the_model_is_respected():
    assert effective_max_length(DataConfig(max_length=0), 512) == 512
    assert effective_max_length(DataConfig(max_length=64), 512) == 64
    assert effective_max_length(DataConfig(max_length=64)) == 64
    with pytest.raises(DataError, match=r"data\.max_length is 1024, but the model takes 512"):
        effective_max_length(DataConfig(max_length=1024), 512)
    with pytest.raises(DataError, match="states no maximum"):
        effective_max_length(DataConfig(max_length=0))


def test_many_chunks_equal_single_calls(tokenizer):
    texts = [" ".join("abcdefg"[: 1 + number % 7]) for number in range(5000)]
    examples = tokenize(tokenizer, texts, max_length=16)
    assert isinstance(examples, TokenizedExamples)
    for index in (0, 2047, 2048, 4999):
        assert ids_of(examples, index) == tokenizer.encode(texts[index]).ids


def test_real_tokenizers_agree_with_transformers(minilm_path):
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(minilm_path)
    texts, pairs = ["Hello, wörld! 中文", "a " * 300, "x"], ["How are you?", "b", "y " * 300]
    for second in (None, pairs):
        examples = tokenize(real, texts, second, max_length=64, warn=False)
        expected = real(texts, second, truncation=True, max_length=64, padding=False)
        assert [ids_of(examples, index) for index in range(3)] == expected["input_ids"]
        if second:
            assert [types_of(examples, index) for index in range(3)] == expected["token_type_ids"]
        assert examples.num_truncated == (1 if second is None else 2)
