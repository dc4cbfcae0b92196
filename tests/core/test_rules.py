"""Ordered, total rules: the first match decides, and nothing is passed over in silence."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.core.rules import Rule, match_rules
from flaxbert.errors import RuleError

NAMES = ["encoder.layers.0.up.kernel", "encoder.layers.0.up.bias", "encoder.layers.1.up.kernel", "pooler.kernel@codes"]


def match(rules, names=NAMES):
    return match_rules(names, rules, purpose="test")


def test_the_first_match_decides():
    values = match([Rule(r".*\.bias", "bias"), Rule(r"encoder\..*", "encoder"), Rule(r".*", "rest")])
    assert list(values.items()) == list(zip(NAMES, ["encoder", "bias", "encoder", "rest"], strict=True))


def test_a_pattern_must_match_the_whole_name():
    with pytest.raises(RuleError, match=r"rule 'up' matches no leaf"):
        match([Rule("up", 1), Rule(".*", 0)])


def test_names_come_from_a_tree_too():
    assert match_rules({"a": {"kernel": 1, "bias": 2}}, [Rule("a.kernel", 1), Rule(".*", 0)], purpose="test") == {
        "a.kernel": 1,
        "a.bias": 0,
    }


def test_parts_of_typed_leaves_have_names():
    assert match([Rule(r".*@codes", "code"), Rule(".*", "other")])["pooler.kernel@codes"] == "code"


def test_a_leaf_without_rule_is_named_with_the_rules_and_the_purpose():
    with pytest.raises(RuleError) as caught:
        match_rules(NAMES, [Rule(r"encoder\..*", 1)], purpose="weight decay")
    message = str(caught.value)
    assert all(word in message for word in ("weight decay", "'pooler.kernel@codes'", r"'encoder\..*'"))
    assert "encoder.layers.0" not in message


def test_a_rule_without_leaf_is_named_with_the_nearest_leaf():
    with pytest.raises(
        RuleError, match=r"'pooller\\\.kernel@codes' matches no leaf. Did you mean 'pooler.kernel@codes'"
    ):
        match([Rule(r"pooller\.kernel@codes", 1), Rule(".*", 0)])


def test_a_rule_hidden_by_an_earlier_one_is_no_error_but_one_without_leaf_is():
    assert set(match([Rule(".*", 1), Rule(r".*\.bias", 2)]).values()) == {1}


def test_an_optional_rule_may_match_nothing():
    assert set(match([Rule("nothing", 1, optional=True), Rule(".*", 0)]).values()) == {0}


def test_all_problems_are_told_at_once():
    with pytest.raises(RuleError) as caught:
        match([Rule("first", 1), Rule("second", 2)])
    assert all(word in str(caught.value) for word in ("'first'", "'second'", "(4 leaves)"))


def test_many_unmatched_leaves_are_cut_short_but_counted():
    with pytest.raises(RuleError) as caught:
        match([Rule("a0", 1)], [f"a{index}" for index in range(50)])
    assert "…" in str(caught.value)
    assert "(49 leaves)" in str(caught.value)
    assert "'a40'" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["(", "[a", "*"])
def test_a_broken_pattern_is_named(pattern):
    with pytest.raises(RuleError, match=rf"'{re.escape(pattern)}' is not a regular expression"):
        match([Rule(pattern, 1)])


def test_no_leaves_and_no_rules_is_fine_but_rules_for_no_leaves_are_not():
    assert match([], []) == {}
    with pytest.raises(RuleError, match="The tree has no leaves"):
        match([Rule(".*", 1)], [])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ab.", min_size=1, max_size=5), min_size=1, max_size=8, unique=True),
    st.lists(st.sampled_from(["a.*", ".*b", "[ab]+", r".*\..*", "a", ".*"]), max_size=5),
)
def test_every_leaf_gets_the_value_of_its_first_matching_rule_or_all_of_it_is_an_error(names, patterns):
    rules = [Rule(pattern, index) for index, pattern in enumerate(patterns)]
    first = {name: [i for i, p in enumerate(patterns) if re.fullmatch(p, name)][:1] for name in names}
    unused = [p for p in patterns if not any(re.fullmatch(p, name) for name in names)]
    if unused or not all(first.values()):
        with pytest.raises(RuleError):
            match(rules, names)
    else:
        assert match(rules, names) == {name: indices[0] for name, indices in first.items()}
