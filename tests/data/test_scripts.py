"""Scripts of texts, compared with Unicode's own property as the library regex has it."""

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from flaxbert.data.scripts import NO_LETTERS, OTHER, SCRIPTS, script_shares, shares_by_name
from tests.helpers import slow_unless


def named(text):
    return {name: share for name, share in zip(SCRIPTS, script_shares([text]).tolist(), strict=True) if share}


@pytest.mark.parametrize(
    "script",
    slow_unless(
        {"Latin", "Greek", "Cyrillic", "Arabic", "Han"}.__contains__,
        [name for name in SCRIPTS if name not in (OTHER, NO_LETTERS)],
    ),
)
def test_letters_of_every_script_are_those_of_unicode(script):
    points = [number for number in range(0x32400) if not 0xD800 <= number < 0xE000 and chr(number).isalpha()]
    ours = {number for number in points if named_place(number) == script}
    text = "".join(map(chr, points))
    theirs = {ord(letter) for letter in regex.findall(rf"\p{{Script={script}}}", text)}
    assert ours == theirs


def named_place(number):
    from flaxbert.data.scripts import _numbers

    return SCRIPTS[_numbers()[number]]


def test_shares_of_letters_without_digits_and_signs():
    assert named("film 12!?") == {"Latin": 1.0}
    assert named("abc где") == {"Latin": 0.5, "Cyrillic": 0.5}
    assert named("電影 ねえ") == {"Han": 0.5, "Hiragana": 0.5}
    assert named("12 😀 .") == named("") == {NO_LETTERS: 1.0}
    assert named("ᐃᓄᒃᑎᑐᑦ") == {OTHER: 1.0}


@given(st.lists(st.text(), max_size=3))
def test_shares_of_any_text_are_shares(texts):
    shares = script_shares(texts)
    assert shares.sum() == pytest.approx(1.0, abs=1e-5)
    assert (shares >= 0).all()


def test_lone_surrogates_are_no_letters():
    assert named("\ud800") == {NO_LETTERS: 1.0}


def test_every_example_counts_alike_and_pairs_are_one():
    assert shares_by_name([["a" * 100, "я"]]) == {"Latin": 0.5, "Cyrillic": 0.5}
    assert shares_by_name([["aa"], ["яя"]]) == {"Latin": 0.5, "Cyrillic": 0.5}
    assert shares_by_name([]) == shares_by_name([[]]) == {}
    many = ["a"] * 50 + ["я"] * 50
    assert shares_by_name([many], most=10) == {"Latin": 0.5, "Cyrillic": 0.5}
    assert np.isclose(sum(shares_by_name([["a1", "ясé", "電"]]).values()), 1.0)
