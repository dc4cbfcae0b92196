"""Zeros become smaller matrices, and results stay: in every family that allows it."""

import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.core.arrays import SparseArray
from flaxbert.core.trees import flatten_names, stack_layers, unflatten_names
from flaxbert.errors import ConfigError, RuleError, ShapeError
from flaxbert.families import FAMILIES
from flaxbert.families.graph import abstract_params, graph_definition
from flaxbert.transforms import quantize
from flaxbert.transforms.budgets import UnitBudget, choose_units
from flaxbert.transforms.shrink import shrink
from flaxbert.transforms.units import magnitude_scores, mask_units
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.save import save_checkpoint
from tests.helpers import DIFFERENT_FAMILIES, slow_unless
from tests.nn.models import run, small_batch
from tests.transforms.pruned import TASK, small_model, unit_axes, units_of

EXACT = 1e-5
"""Absolute, for outputs of size up to 5: the same float32 sums with fewer zeros in them."""


def logits(config, params, batch, **how):
    return np.asarray(run(params, batch, config=config, task=TASK, **how).logits)


def masked_model(family, chosen="both", scope="global", **changes):
    """A small model with half of its heads and neurons set to zero, in different numbers where the family allows it."""
    config, params, axes = small_model(family, **changes)
    for kind in unit_axes(config):
        if chosen in (kind, "both"):
            units = units_of(config, params, axes, kind)
            budget = UnitBudget(0.5, scope="layer" if units.needs_even else scope)
            params = mask_units(params, units, choose_units(units, magnitude_scores(params, units), budget))
    return config, params, axes


def zeroed(params):
    """The same model with its zeros as plain numbers, which nothing but the weights tells of."""
    return {
        name: np.asarray(leaf.materialize() if isinstance(leaf, SparseArray) else leaf)
        for name, leaf in flatten_names(params).items()
    }


@pytest.mark.parametrize("family", slow_unless({*DIFFERENT_FAMILIES, "mpnet"}.__contains__, FAMILIES))
def test_a_shrunk_model_gives_what_the_masked_one_gave_and_comes_back_from_its_folder(family, tmp_path):
    config, params, axes = masked_model(family)
    smaller, small, report = shrink(config, params, axes, unit_axes(config))
    expected = {name: leaf.shape for name, leaf in flatten_names(abstract_params(smaller, TASK)).items()}
    assert {name: leaf.shape for name, leaf in flatten_names(small).items()} == expected
    assert report.bytes_after < 0.8 * report.bytes_before
    assert not any(isinstance(leaf, SparseArray) for leaf in flatten_names(small).values())
    batch = small_batch(config)
    real = batch["attention_mask"] == 1
    wanted, got = logits(config, params, batch), logits(smaller, small, batch)
    np.testing.assert_allclose(got[real], wanted[real], atol=EXACT)
    folder = save_checkpoint(tmp_path / "model", config=smaller, task=TASK, params=small)
    loaded = load_checkpoint(folder, TASK)
    assert loaded.config == smaller.replace(labels=loaded.config.labels)
    again = flatten_names(loaded.params)
    assert all(np.array_equal(again[name], leaf) for name, leaf in flatten_names(small).items())


def test_heads_alone_neurons_alone_and_plain_zeros_are_found_too():
    for kind in ("heads", "neurons"):
        config, params, axes = masked_model("bert", kind, scope="layer")
        smaller, _, _ = shrink(config, params, axes, unit_axes(config))
        assert (smaller.num_attention_heads, smaller.head_dim) == ((2, 8) if kind == "heads" else (4, 8))
        assert smaller.intermediate_size == (20 if kind == "neurons" else 40)
    config, params, axes = masked_model("bert")
    plain, _, _ = shrink(config, unflatten_names(zeroed(params)), axes, unit_axes(config))
    assert plain == shrink(config, params, axes, unit_axes(config))[0]


def test_layers_keep_their_own_numbers_or_as_many_as_each_other():
    config, params, axes = small_model("bert", num_hidden_layers=3)
    heads = units_of(config, params, axes, "heads")
    kept = {block.name: np.arange(4) < count for block, count in zip(heads.blocks, (3, 1, 2), strict=True)}
    masked = mask_units(params, heads, kept)
    own, small, _ = shrink(config, masked, axes, unit_axes(config))
    assert own.layer_heads == (3, 1, 2)
    assert own.num_attention_heads == 3
    assert [layer.attention_size for layer in own.layer_sizes] == [24, 8, 16]
    even, alike, _ = shrink(config, masked, axes, unit_axes(config), even=True)
    assert (even.layer_heads, even.num_attention_heads, even.head_size) == ((), 3, 8)
    batch = small_batch(config)
    wanted = logits(config, masked, batch)
    for smaller, tree in ((own, small), (even, alike)):
        np.testing.assert_allclose(logits(smaller, tree, batch), wanted, atol=EXACT)
    scanned = logits(even, stack_layers(alike), batch, execution=Execution(scan_layers=True))
    np.testing.assert_allclose(scanned, wanted, atol=EXACT)
    with pytest.raises(ConfigError, match=r"different sizes.*\(3, 1, 2\).*scan_layers: false.*--even"):
        graph_definition(own, TASK, Execution(scan_layers=True))
    with pytest.raises(ShapeError, match="can not be stacked"):
        stack_layers(small)


def test_a_layer_without_anything_keeps_one_of_each():
    config, params, axes = small_model("bert")
    for kind in unit_axes(config):
        units = units_of(config, params, axes, kind)
        nothing = {block.name: np.zeros(block.num_units, bool) for block in units.blocks}
        params = mask_units(params, units, nothing)
    smaller, small, _ = shrink(config, params, axes, unit_axes(config))
    assert (smaller.num_attention_heads, smaller.intermediate_size) == (1, 1)
    batch = small_batch(config)
    np.testing.assert_allclose(logits(smaller, small, batch), logits(config, params, batch), atol=EXACT)


def test_masks_of_single_weights_go_along():
    config, params, axes = masked_model("bert", scope="layer")
    name = "encoder.layers.0.feed_forward.up.kernel"
    leaves = flatten_names(params)
    leaf = leaves[name]
    mask = np.asarray(leaf.mask).copy()
    mask[0] = False
    leaves[name] = SparseArray(np.asarray(leaf.values) * mask, mask)
    params = unflatten_names(leaves)
    smaller, small, _ = shrink(config, params, axes, unit_axes(config))
    kept = flatten_names(small)[name]
    assert isinstance(kept, SparseArray)
    assert kept.shape == (32, 20)
    assert not np.asarray(kept.mask)[0].any()
    assert np.asarray(kept.mask)[1:].all()
    batch = small_batch(config)
    np.testing.assert_allclose(logits(smaller, small, batch), logits(config, params, batch), atol=EXACT)


def test_quantized_and_stacked_models_are_refused_and_the_input_stays():
    config, params, axes = masked_model("bert", scope="layer")
    before = zeroed(params)
    shrink(config, params, axes, unit_axes(config))
    assert all(np.array_equal(before[name], array) for name, array in zeroed(params).items())
    with pytest.raises(RuleError, match="prune before you quantize"):
        shrink(config, quantize(small_model("bert")[1])[0], axes, unit_axes(config))
    with pytest.raises(ShapeError, match="stacked"):
        shrink(config, stack_layers(small_model("bert")[1]), axes, unit_axes(config))
