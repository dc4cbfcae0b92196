"""Fewer layers."""

import numpy as np
import pytest

from flaxbert.core.trees import flatten_names, stack_layers
from flaxbert.errors import ConfigError, ShapeError
from flaxbert.families import FAMILIES, get_family
from flaxbert.transforms.depth import keep_layers, parse_layers
from tests.helpers import slow_unless
from tests.nn.models import run, small_batch
from tests.transforms.pruned import TASK, small_model

EXACT = 2e-5
"""Absolute: the same float32 numbers, summed by another program."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,2,4", (0, 2, 4)),
        (" 1 , 3 ", (1, 3)),
        ("first:2", (0, 1)),
        ("last:2", (4, 5)),
        ("spread:3", (0, 2, 4)),
        ("spread:4", (0, 1, 3, 4)),
        ("spread:6", (0, 1, 2, 3, 4, 5)),
    ],
)
def test_layers_are_numbers_or_a_form(text, expected):
    assert parse_layers(text, 6) == expected


@pytest.mark.parametrize("text", ["", "first", "first:0", "last:7", "2,1", "1,1", "0,6", "every:2", "-1"])
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigError, match="[Ll]ayers"):
        parse_layers(text, 6)


def shorten(family, kept, **changes):
    config, params, _ = small_model(family, num_hidden_layers=4, **changes)
    entry = get_family(family)
    found = keep_layers(
        config, params, kept, select_layers=entry.select_layers, next_layer_leaves=entry.next_layer_leaves
    )
    return config, params, *found


@pytest.mark.parametrize(
    "family", slow_unless({"bert", "deberta-v2", "modernbert"}.__contains__, sorted(set(FAMILIES) - {"albert"}))
)
def test_without_its_last_layers_a_model_gives_what_it_had_before_them(family):
    config, params, shorter, short, report = shorten(family, (0, 1))
    assert shorter.num_hidden_layers == 2
    batch = small_batch(config)
    real = batch["attention_mask"] == 1
    states = run(params, batch, config=config, task=TASK, keep_hidden=True).hidden_states
    got = run(short, batch, config=shorter, task=TASK, keep_hidden=True).hidden_states
    for before, after in zip(states[:2], got[:2], strict=True):
        np.testing.assert_allclose(np.asarray(after)[real], np.asarray(before)[real], atol=EXACT)
    if family != "modernbert":  # which normalises what comes last once more
        np.testing.assert_allclose(np.asarray(got[2])[real], np.asarray(states[2])[real], atol=EXACT)
    assert report.bytes_after < report.bytes_before


def test_kept_layers_are_numbered_anew_in_their_order():
    _, params, _, short, report = shorten("bert", (1, 3))
    before, after = flatten_names(params), flatten_names(short)
    for new, old in ((0, 1), (1, 3)):
        assert (
            after[f"encoder.layers.{new}.feed_forward.up.bias"] is before[f"encoder.layers.{old}.feed_forward.up.bias"]
        )
    assert not any(name.startswith("encoder.layers.2.") for name in after)
    gone = {leaf.name.split(".")[2] for leaf in report.leaves if leaf.form == "removed"}
    assert gone == {"0", "2"}


def test_a_norm_that_belongs_to_the_next_layer_goes_with_it():
    _, params, shorter, short, _ = shorten("modernbert", (0, 3))
    before, after = flatten_names(params), flatten_names(short)
    assert after["encoder.layers.0.norm.scale"] is before["encoder.layers.2.norm.scale"]  # before layer 3's attention
    assert after["encoder.layers.1.norm.scale"] is before["encoder.layers.3.norm.scale"]
    assert shorter.options.layer_types == ("full_attention", "full_attention")
    with pytest.raises(ConfigError, match="first layer can not be dropped"):
        shorten("modernbert", (1, 2))


def test_sizes_of_single_layers_go_along():
    config = small_model("bert", num_hidden_layers=4)[0]
    config = config.replace(layer_heads=(4, 3, 2, 1), layer_intermediate=(9, 9, 8, 9), head_size=8)
    shorter = get_family("bert").select_layers(config, (1, 2))
    assert (shorter.layer_heads, shorter.layer_intermediate, shorter.head_dim) == ((3, 2), (9, 8), 8)
    assert get_family("bert").select_layers(config, (3,)).num_attention_heads == 1


@pytest.mark.parametrize("kept", [(), (1, 0), (0, 4), (-1, 2)])
def test_layers_that_are_not_there_or_not_in_order_are_refused(kept):
    with pytest.raises(ConfigError, match="can not be kept of 4"):
        shorten("bert", kept)


def test_stacked_layers_are_refused():
    config, params, _ = small_model("bert")
    with pytest.raises(ShapeError, match="stacked"):
        keep_layers(config, stack_layers(params), (0,), select_layers=get_family("bert").select_layers)
