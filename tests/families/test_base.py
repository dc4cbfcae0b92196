"""What every family does with its tables, on a made-up family of two kinds of leaves."""

import dataclasses
import math
import re

import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.core.rules import Rule
from flaxbert.errors import RuleError
from flaxbert.families import FAMILIES
from flaxbert.families.base import Family, TensorName, TiedTensor
from tests.families.examples import odd_config

PLACES = re.compile(r"\{(\w+)\}")

WORD = TensorName("word.embedding", "words.weight")
QUERY = TensorName("layers.{layer}.query.kernel", "block.{layer}.q.weight", "transpose")
BIAS = TensorName("layers.{layer}.query.bias", "block.{layer}.q.bias")
HEAD = TensorName("head.kernel", "score.weight", "transpose", in_base=False)

RULES = (
    Rule(r"word\.embedding", ("vocab", "embed")),
    Rule(r"layers\.\d+\.query\.kernel", ("embed", "attention")),
    Rule(r"head\.kernel", ("embed", "labels"), optional=True),
    Rule(r".*\.bias", ("attention",)),
)


def make_family(tensors=(WORD, QUERY, BIAS, HEAD), rules=RULES):
    return Family(
        model_type="toy",
        prefix="toy",
        tensors=tuple(tensors),
        tied={"decoder.weight": TiedTensor("word.embedding", "head")},
        ignored=(),
        foreign=(),
        renamed={},
        axis_rules=tuple(rules),
        architectures={"fill-mask": "ToyForMaskedLM"},
        config_from_json=lambda json: ModelConfig(**json),
        config_to_json=lambda config, task: {"task": task},
        network=lambda config, task, execution, rngs: None,
    )


def with_layers(count):
    return ModelConfig(num_hidden_layers=count)


def numbered(count):
    layers = [f"layers.{layer}.query.{part}" for layer in range(count) for part in ("kernel", "bias")]
    return ["word.embedding", *layers]


STACKED = ["word.embedding", "layers.stacked.query.kernel", "layers.stacked.query.bias"]


@pytest.mark.parametrize("count", [1, 2, 11])
def test_layers_are_written_out_and_other_lines_stand_once(count):
    table = make_family().tensor_table(with_layers(count))
    assert len(table) == 2 + 2 * count
    assert set(table) == {*numbered(count), "head.kernel"}
    for layer in range(count):
        assert table[f"layers.{layer}.query.kernel"].tensor == f"block.{layer}.q.weight"
        assert table[f"layers.{layer}.query.bias"].tensor == f"block.{layer}.q.bias"


def test_a_line_of_the_table_keeps_how_its_tensor_is_stored():
    table = make_family().tensor_table(with_layers(2))
    assert table["layers.1.query.kernel"] == TensorName("layers.1.query.kernel", "block.1.q.weight", "transpose", True)
    assert table["layers.1.query.bias"] == TensorName("layers.1.query.bias", "block.1.q.bias", "none", True)
    assert table["head.kernel"] == HEAD
    assert table["word.embedding"] == WORD


def test_the_table_follows_the_order_of_the_family_and_layers_rise():
    table = make_family([HEAD, QUERY, WORD]).tensor_table(with_layers(3))
    assert list(table) == ["head.kernel", *(f"layers.{layer}.query.kernel" for layer in range(3)), "word.embedding"]


def test_writing_out_a_table_leaves_the_family_as_it_was():
    family = make_family()
    first, second = family.tensor_table(with_layers(3)), family.tensor_table(with_layers(1))
    assert family.tensors == (WORD, QUERY, BIAS, HEAD)
    assert set(second) < set(first)
    first.clear()
    assert family.tensor_table(with_layers(1)) == second


def test_a_family_without_tensors_has_an_empty_table():
    assert make_family([]).tensor_table(with_layers(2)) == {}


def test_every_leaf_gets_the_axes_of_its_first_rule():
    axes = make_family().parameter_axes([*numbered(2), "head.kernel"])
    assert axes == {
        "word.embedding": ("vocab", "embed"),
        "layers.0.query.kernel": ("embed", "attention"),
        "layers.0.query.bias": ("attention",),
        "layers.1.query.kernel": ("embed", "attention"),
        "layers.1.query.bias": ("attention",),
        "head.kernel": ("embed", "labels"),
    }


def test_stacked_leaves_have_the_layers_first_and_then_the_axes_of_one_layer():
    family = make_family()
    plain, stacked = family.parameter_axes(numbered(1)), family.parameter_axes(STACKED)
    assert list(stacked) == STACKED
    assert stacked["word.embedding"] == plain["word.embedding"]
    for part in ("kernel", "bias"):
        assert stacked[f"layers.stacked.query.{part}"] == ("layers", *plain[f"layers.0.query.{part}"])


def test_stacked_is_a_part_of_a_name_of_its_own():
    rules = (Rule(r"stacked\.kernel", ("embed",)), Rule(r"layers\.unstacked\.kernel", ("labels",)))
    names = ["stacked.kernel", "layers.unstacked.kernel"]
    assert make_family(rules=rules).parameter_axes(names) == {
        "stacked.kernel": ("embed",),
        "layers.unstacked.kernel": ("labels",),
    }


@pytest.mark.parametrize("names", [numbered(2), numbered(2)[::-1], [*numbered(1), "head.kernel"], STACKED[::-1]])
def test_axes_stand_in_the_order_of_the_names(names):
    assert list(make_family().parameter_axes(names)) == names


def test_numbered_and_stacked_leaves_of_one_name_do_not_hide_each_other():
    names = ["word.embedding", "layers.0.query.kernel", "layers.stacked.query.kernel", "layers.0.query.bias"]
    axes = make_family().parameter_axes(names)
    assert list(axes) == names
    assert axes["layers.stacked.query.kernel"] == ("layers", *axes["layers.0.query.kernel"])


def test_a_leaf_without_axes_and_a_rule_without_leaf_are_errors_that_name_the_family():
    family = make_family()
    with pytest.raises(RuleError, match=r"No toy axis rule matches 'layers\.0\.query\.scale' \(1 leaves\)"):
        family.parameter_axes([*numbered(1), "layers.stacked.query.scale"])
    with pytest.raises(RuleError, match=r"The toy axis rule 'word.*embedding' matches no leaf"):
        family.parameter_axes(numbered(1)[1:])
    with pytest.raises(RuleError, match="toy axis rule.*no leaves"):
        family.parameter_axes([])


def test_families_and_their_lines_can_not_be_changed():
    for entry, field in ((make_family(), "prefix"), (WORD, "tensor"), (TiedTensor("a", "b"), "leaf")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(entry, field, "other")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_known_families_write_out_each_line_for_each_layer(family):
    assert all(set(PLACES.findall(entry.leaf)) == set(PLACES.findall(entry.tensor)) for entry in family.tensors)
    config = odd_config(family, "fill-mask")
    counts, three = family.repeats(config), family.tensor_table(config)
    lines = [entry for entry in family.tensors if entry.applies(config)]
    expected = [math.prod(counts[word] for word in PLACES.findall(entry.leaf)) for entry in lines]
    assert max(expected) > 1 or "layer" not in counts
    assert len(three) == sum(expected)
    assert not any("{" in name or "{" in entry.tensor for name, entry in three.items())
