"""Tokenizers written in Python: where their tokens stand in a text, and windows."""

import pytest

from flaxbert.data.python_tokenizer import text_pieces
from flaxbert.data.windows import tokenize_windows
from flaxbert.errors import ConfigError, DataError
from tests.weights.bertweet import bertweet


def where(index):
    return f"row {index + 1}"


def parts(tokenizer, text):
    pieces = text_pieces(tokenizer, text)
    assert pieces.ids == tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
    return list(zip(tokenizer.tokenize(text), [text[start:end] for start, end in pieces.spans], strict=True))


def test_tokens_stand_for_their_characters(tmp_path):
    assert parts(bertweet(tmp_path), "a  fine film.") == [
        ("a", "a"), ("fine", "fine"), ("fi@@", "fi"), ("l@@", "l"), ("m", "m"), (".", ".")
    ]  # fmt: skip


def test_what_is_rewritten_belongs_to_its_first_token(tmp_path):
    tokenizer = bertweet(tmp_path)
    assert parts(tokenizer, "@someone: a 😀!")[:3] == [("@USER", "@someone"), (":", ":"), ("a", "a")]
    found = parts(tokenizer, "see https://x.y/z now")
    assert [part for _, part in found if "x.y" in part] == ["https://x.y/z"]
    faces = parts(tokenizer, "a😀 fine")
    assert "".join(part for _, part in faces) == "a😀fine"
    assert faces[-1] == ("fine", "fine")


@pytest.mark.parametrize(
    "text",
    ["I cannot, she can't : ) and we'll see it's 5 p.m. now", "x 123 456 7890 y", "a&amp;b  c", "", " ", "don’t…"],
)
def test_spans_rise_and_hold_every_word(text, tmp_path):
    tokenizer = bertweet(tmp_path)
    pieces = text_pieces(tokenizer, text)
    assert len(pieces.ids) == len(pieces.spans) == len(tokenizer.tokenize(text))
    ends = [0, *(end for _, end in pieces.spans)]
    assert all(before <= start <= end for before, (start, end) in zip(ends, pieces.spans, strict=False))
    assert all(end <= len(text) for end in ends)


def test_windows_are_those_of_the_whole_input(tmp_path):
    tokenizer = bertweet(tmp_path)
    text, first = "a fine film a fine fine a film fine a", "fine film"
    whole = tokenize_windows(tokenizer, [text], [first], max_length=100, stride=2, where=where)
    assert whole.tokens.input_ids.tolist() == tokenizer(first, text)["input_ids"]
    cut = tokenize_windows(tokenizer, ["a", text], [first, first], max_length=14, stride=2, where=where)
    assert cut.text_of.tolist() == [0] + [1] * (len(cut.text_of) - 1)
    assert cut.num_cut == 1
    assert cut.tokens.lengths.max() == 14
    seen = []
    for number in range(1, len(cut.text_of)):
        place = cut.window(number)
        spans = cut.spans[place][cut.in_text[place]].tolist()
        assert not seen or spans[:2] == seen[-2:]
        seen += spans if not seen else spans[2:]
    assert seen == [list(span) for span in text_pieces(tokenizer, text).spans]


def test_no_room_and_no_unicode_are_named(tmp_path):
    tokenizer = bertweet(tmp_path)
    with pytest.raises(DataError, match=r"row 2: .*only_second can not bring"):
        tokenize_windows(tokenizer, ["a", "a"], ["a", "fine " * 9], max_length=12, stride=None, where=where)
    with pytest.raises(DataError, match=r"row 1: .*surrogate U\+D800"):
        tokenize_windows(tokenizer, ["a \ud800"], max_length=12, stride=None, where=where)
    with pytest.raises(ConfigError, match="not a fast one"):
        tokenize_windows(object(), ["a"], max_length=12, stride=None, where=where)
