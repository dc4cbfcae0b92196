"""Ordered and total rules over leaf names: the one primitive behind sharding, decay, freezing, quantization and more.

Rules are tried in order against the whole name of a leaf; each leaf takes the first match. A leaf that no rule matches,
or a rule that matches no leaf (unless it says ``optional``), is an error that names both. Silence is never an option.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from flaxbert.core.trees import leaf_names
from flaxbert.errors import RuleError, nearest

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Rule(Generic[Value]):
    """What to do with the leaves whose name matches.

    Attributes:
      pattern: Regular expression that must match the whole dotted name, with ``@part`` where parts are addressed.
      value: What matching leaves get.
      optional: Whether the rule may match no leaf.
    """

    pattern: str
    value: Value
    optional: bool = False


def _compile(rule: Rule[Any], purpose: str) -> re.Pattern[str]:
    try:
        return re.compile(rule.pattern)
    except re.error as error:
        raise RuleError(f"The {purpose} rule '{rule.pattern}' is not a regular expression: {error}.") from error


def _near_leaves(pattern: str, names: Sequence[str]) -> str:
    word = re.sub(r"\\.|[\[\](){}^$|?*+]", lambda match: "." if match[0] == r"\." else "", pattern)
    suggestion = nearest(word, names)
    return suggestion or f" The leaves are named like '{names[0]}'." if names else " The tree has no leaves."


def match_rules(
    tree: Mapping[str, Any] | Iterable[str],
    rules: Sequence[Rule[Value]],
    *,
    purpose: str,
) -> dict[str, Value]:
    """Gives every leaf the value of the first rule that matches its name.

    Args:
      tree: A parameter tree, or the leaf (or part) names themselves.
      rules: Tried in order.
      purpose: What the rules decide, for the messages: ``weight decay``, ``sharding``…

    Returns:
      The value per leaf name, in the order of the names.

    Raises:
      RuleError: A leaf without a rule, or a rule that is not optional without a leaf; all of them are listed.

    Example:
      >>> match_rules(["a.bias", "a.kernel"], [Rule(r".*bias", 0.0), Rule(r".*", 0.01)], purpose="weight decay")
      {'a.bias': 0.0, 'a.kernel': 0.01}
    """
    names = leaf_names(tree) if isinstance(tree, Mapping) else list(tree)
    patterns = [_compile(rule, purpose) for rule in rules]
    used = [False] * len(rules)
    values: dict[str, Value] = {}
    unmatched: list[str] = []
    for name in names:
        first = True
        for index, pattern in enumerate(patterns):
            if pattern.fullmatch(name):
                used[index] = True
                if first:
                    values[name] = rules[index].value
                    first = False
        if first:
            unmatched.append(name)
    problems = []
    if unmatched:
        shown = ", ".join(f"'{name}'" for name in unmatched[:5]) + (" …" if len(unmatched) > 5 else "")
        given = ", ".join(f"'{rule.pattern}'" for rule in rules) or "none"
        problems.append(f"No {purpose} rule matches {shown} ({len(unmatched)} leaves). The rules are: {given}.")
    for rule, matched in zip(rules, used, strict=True):
        if not matched and not rule.optional:
            problems.append(f"The {purpose} rule '{rule.pattern}' matches no leaf.{_near_leaves(rule.pattern, names)}")
    if problems:
        raise RuleError(" ".join(problems))
    return values
