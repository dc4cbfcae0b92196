"""Entities as tags and as spans, under every scheme, well-formed or not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.data.entity_tags import (
    decode_strict,
    decode_tags,
    detect_scheme,
    encode_spans,
    find_fault,
    is_entity_tag,
    split_tag,
    tag_names,
)
from flaxbert.errors import DataError

SPANS = st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 2), st.integers(1, 3)), max_size=5)


def lay_out(parts):
    """Returns spans side by side, each after a gap, and the number of words."""
    spans, end = [], 0
    for label, gap, length in parts:
        spans.append((label, end + gap, end + gap + length))
        end += gap + length
    return spans, end + 1


@settings(max_examples=60, deadline=None)
@given(SPANS, st.sampled_from(["iob1", "iob2", "iobes"]))
def test_every_scheme_gives_back_its_spans(parts, scheme):
    spans, num_words = lay_out(parts)
    tags = encode_spans(spans, num_words, scheme)
    assert decode_tags(tags) == spans
    assert decode_strict(tags, scheme) == spans
    assert find_fault(tags, scheme) is None


def test_iob1_marks_only_what_would_run_together():
    assert encode_spans([("A", 0, 2), ("A", 2, 3), ("B", 3, 4)], 5, "iob1") == ["I-A", "I-A", "B-A", "I-B", "O"]


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        ([["O", "B-A", "I-A"]], "iob2"),
        ([["O", "I-A", "I-A", "B-A"]], "iob1"),
        ([["S-A", "O"]], "iobes"),
        ([["U-A", "B-A", "L-A"]], "iobes"),
        ([["O", "I-A"], ["O", "B-A"]], "iob2"),  # of neither scheme without a fault
        ([["O"]], "iob2"),
    ],
)
def test_schemes_are_found_out(sentences, scheme):
    assert detect_scheme(sentences) == scheme


@pytest.mark.parametrize(
    ("tags", "scheme", "word", "reason"),
    [
        (["O", "I-A"], "iob2", 1, "continues no entity"),
        (["B-A", "I-B"], "iob2", 1, "continues no entity"),
        (["B-A"], "iob1", 0, "follows no entity"),
        (["B-A", "O"], "iobes", 1, "is not ended"),
        (["O", "B-A"], "iobes", 1, "is not ended before the end"),
        (["E-A"], "iobes", 0, "continues no entity"),
        (["S-A"], "iob2", 0, "none of iob2"),
    ],
)
def test_faults_are_found_at_their_word(tags, scheme, word, reason):
    found = find_fault(tags, scheme)
    assert found is not None
    assert found[0] == word
    assert reason in found[1]


def test_names_of_tags():
    assert tag_names(("A",), "iobes") == ("O", "B-A", "I-A", "E-A", "S-A")
    assert split_tag("L-creative-work") == ("E", "creative-work")
    assert is_entity_tag("B-x y")
    assert not is_entity_tag("B")
    assert not is_entity_tag("NOUN")


@pytest.mark.parametrize("spans", [[("A", 0, 2), ("B", 1, 3)], [("A", 1, 1)], [("A", 2, 4)]])
def test_spans_that_can_not_be_tagged(spans):
    with pytest.raises(DataError):
        encode_spans(spans, 3, "iob2")
