"""What holds for every transform on every family: pure, repeatable, within its error, at home on a mesh and on disk, trainable, composable."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.config import MeshConfig
from flaxbert.core.arrays import SparseArray, is_quantized, is_typed, materialize
from flaxbert.core.sharding import build_mesh, param_shardings, shard
from flaxbert.core.trees import (
    flatten_names,
    flatten_parts,
    leaf_kinds,
    leaf_names,
    same_structure,
    size_bytes,
    unflatten_parts,
)
from flaxbert.errors import FlaxbertError
from flaxbert.families import FAMILIES, get_family
from flaxbert.families.graph import abstract_params, forward, graph_definition
from flaxbert.train.state import split_parts
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.save import save_checkpoint
from tests.helpers import slow_unless
from tests.nn.models import small_batch, small_config, small_params
from tests.transforms.registry import QUANTIZED, RESIZED, SHRUNK, SIZES, SPARSE, TRANSFORMS, axes_of, refusal

QUICK = ("bert",)
"""The family of the default run; ``make test-slow`` takes all."""

EXCERPT = ("int8", "2:4", "more words")
"""Transforms of the default run where a test takes long: one that makes leaves of each kind."""

ROUNDING = 1.001
"""Relative: float32 rounding of scales and of the products that write a leaf out."""

SUMMED = 2e-8
"""Absolute, for weights of size up to 1: the mean row that new tokens get is added up device by device; all else is equal."""

STEP_SIZE = 0.1


def every(families, *, keep=lambda case: True):
    """All pairs of transform and family; the default run takes these families and, of their transforms, those to keep."""
    cases = [(name, family) for family in FAMILIES for name in TRANSFORMS if family not in TRANSFORMS[name].not_for]
    return pytest.mark.parametrize(
        ("name", "family"), slow_unless(lambda case: case[1] in families and keep(case), cases, several=True)
    )


def task_of(family):
    return "fill-mask" if "fill-mask" in get_family(family).architectures else "token-classification"


@functools.lru_cache(maxsize=32)
def model(family):
    """Architecture and host parameters; nobody may change them."""
    config = small_config(family, task_of(family), **SIZES)
    return config, jax.tree.map(np.asarray, small_params(config, task_of(family)))


def parts_equal(first, second):
    first, second = flatten_parts(first), flatten_parts(second)
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and np.array_equal(first[name], second[name]) for name in first
    )


def changed_leaves(before, after):
    after = flatten_names(after)
    return {
        name: after[name] for name, leaf in flatten_names(before).items() if name in after and after[name] is not leaf
    }


@every(QUICK)
def test_a_transform_is_pure_and_gives_the_same_twice(name, family):
    config, params = model(family)
    copy = jax.tree.map(np.copy, params)
    first, second = (TRANSFORMS[name].run(params, config) for _ in range(2))
    assert parts_equal(params, copy)
    assert first[1] == second[1]
    assert parts_equal(first[0], second[0])
    assert leaf_kinds(first[0]) == leaf_kinds(second[0])
    assert changed_leaves(params, first[0]) or leaf_names(first[0]) != leaf_names(params)


@every(QUICK)
def test_names_stay_and_changed_leaves_are_sound(name, family):
    config, params = model(family)
    transform = TRANSFORMS[name]
    after, after_config = transform.run(params, config)
    if transform.makes == SHRUNK:
        expected = flatten_names(abstract_params(after_config, task_of(family)))
        assert {name: leaf.shape for name, leaf in flatten_names(after).items()} == {
            name: leaf.shape for name, leaf in expected.items()
        }
        assert size_bytes(after) < size_bytes(params)
        return
    assert leaf_names(after) == leaf_names(params)
    for leaf_name, leaf in changed_leaves(params, after).items():
        old = flatten_names(params)[leaf_name]
        if transform.makes == RESIZED:
            kept = min(len(old), len(leaf))
            np.testing.assert_array_equal(leaf[:kept], old[:kept])
            continue
        leaf.validate(leaf_name)
        assert (leaf.shape, leaf.dtype) == (old.shape, old.dtype)
        assert is_quantized(leaf) == (transform.makes == QUANTIZED)
        assert isinstance(leaf, SparseArray) == (transform.makes == SPARSE)


@every(QUICK, keep=lambda case: TRANSFORMS[case[0]].error is not None)
def test_errors_stay_within_what_is_promised(name, family):
    bound = TRANSFORMS[name].error
    config, params = model(family)
    after, _ = TRANSFORMS[name].run(params, config)
    for leaf_name, leaf in changed_leaves(params, after).items():
        if TRANSFORMS[name].makes == RESIZED:
            continue
        weights = np.asarray(flatten_names(params)[leaf_name], np.float64)
        stored = np.asarray(materialize(leaf), np.float64)
        assert np.isfinite(stored).all(), leaf_name
        if bound is not None:
            error = float(np.sqrt(np.mean(np.square(stored - weights))))
            assert 0 < error <= bound(weights) * ROUNDING, leaf_name


@every(("bert",))
def test_a_transform_works_where_the_leaves_lie(name, family):
    config, params = model(family)
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    expected, _ = TRANSFORMS[name].run(params, config)
    on_mesh = shard(params, param_shardings(params, axes_of(params, config), mesh))
    placed, _ = TRANSFORMS[name].run(on_mesh, config)
    shardings = flatten_parts(param_shardings(expected, axes_of(expected, config), mesh))
    for part, array in flatten_parts(placed).items():
        np.testing.assert_allclose(array, flatten_parts(expected)[part], rtol=0, atol=SUMMED, err_msg=part)
        assert array.sharding.is_equivalent_to(shardings[part], array.ndim), part


@every(("bert",))
def test_what_is_saved_comes_back_bit_for_bit(name, family, tmp_path):
    config, params = model(family)
    after, config = TRANSFORMS[name].run(params, config)
    after = jax.tree.map(np.asarray, after)
    loaded = load_checkpoint(
        save_checkpoint(tmp_path / "model", config=config, task=task_of(family), params=after), task_of(family)
    )
    assert loaded.config.vocab_size == config.vocab_size
    sizes = ("num_hidden_layers", "head_dim", "layer_heads", "layer_intermediate")
    assert [getattr(loaded.config, size) for size in sizes] == [getattr(config, size) for size in sizes]
    assert leaf_kinds(loaded.params) == leaf_kinds(after)
    assert parts_equal(loaded.params, after)


@functools.lru_cache(maxsize=32)
def gradients_of(family, name):
    """Trainable and frozen parts of a transformed model (of the float one for no name), and the gradients of the former."""
    config, params = model(family)
    if name:
        params, config = TRANSFORMS[name].run(params, config)
    graphdef = graph_definition(config, task_of(family), Execution())
    kinds = leaf_kinds(params)
    trainable, frozen = split_parts(jax.tree.map(jnp.asarray, params), ())
    small = config.replace(vocab_size=min(config.vocab_size, model(family)[0].vocab_size - 8))
    batch = small_batch(small, lengths=(6, 9))

    def loss(trainable):
        output = forward(graphdef, unflatten_parts({**trainable, **frozen}, kinds), batch)
        return jnp.sum(jnp.sin(output.logits))

    return kinds, trainable, frozen, jax.jit(jax.grad(loss))(trainable)


@every(("bert",), keep=lambda case: case[0] in EXCERPT)
def test_a_step_changes_what_should_change_and_nothing_else(name, family):
    kinds, trainable, frozen, gradients = gradients_of(family, name)
    before = unflatten_parts({**trainable, **frozen}, kinds)
    stepped = {part: array - STEP_SIZE * gradients[part] for part, array in trainable.items()}
    after = flatten_parts(unflatten_parts({**stepped, **frozen}, kinds))
    moved = {
        part.partition("@")[0]
        for part, array in flatten_parts(before).items()
        if not np.array_equal(after[part], array)
    }
    _, _, _, float_gradients = gradients_of(family, "")
    learning = {part for part, gradient in float_gradients.items() if np.any(np.asarray(gradient) != 0)}
    leaves = flatten_names(before)
    still = {leaf for leaf in leaves if is_quantized(leaves[leaf])}
    assert moved == (learning & leaves.keys()) - still
    for leaf_name, leaf in leaves.items():
        if isinstance(leaf, SparseArray):
            pruned = ~np.asarray(leaf.mask)
            assert pruned.any()
            assert not np.asarray(gradients[f"{leaf_name}@values"])[pruned].any(), leaf_name
    assert all(part in frozen for part in flatten_parts(before) if part.partition("@")[0] in still)


@every(("bert",), keep=lambda case: case[0] in EXCERPT)
def test_transforms_follow_each_other_or_say_why_not(name, family):
    config, params = model(family)
    between, between_config = TRANSFORMS[name].run(params, config)
    copy = jax.tree.map(np.copy, between)
    for second, transform in TRANSFORMS.items():
        if family in transform.not_for:
            continue
        reason = refusal(TRANSFORMS[name], transform)
        if reason is not None:
            with pytest.raises(FlaxbertError, match=reason):
                transform.run(between, between_config)
        else:
            after, _ = transform.run(between, between_config)
            check_follows(between, after, f"{name} then {second}", transform.makes == SHRUNK)
        assert parts_equal(between, copy), f"{name} then {second}"


def check_follows(between, after, name, shrinks=False):
    """Names stay, but for those of layers that go; typed leaves are sound, and no zero of a mask comes back."""
    assert set(leaf_names(after)) <= set(leaf_names(between)), name
    assert shrinks or leaf_names(after) == leaf_names(between), name
    for leaf_name, leaf in flatten_names(after).items():
        before = flatten_names(between)[leaf_name]
        if is_typed(leaf):
            leaf.validate(leaf_name)
            assert np.isfinite(np.asarray(materialize(leaf))).all(), (name, leaf_name)
        if isinstance(before, SparseArray) and before.shape == leaf.shape:
            assert not np.asarray(materialize(leaf))[~np.asarray(before.mask)].any(), (name, leaf_name)


@pytest.mark.parametrize("family", slow_unless("bert".__eq__, FAMILIES))
@pytest.mark.parametrize(
    "last", [name for name, transform in TRANSFORMS.items() if transform.makes == QUANTIZED and transform.keeps_zeros]
)
def test_all_three_kinds_in_the_order_in_which_they_go(last, family, tmp_path):
    config, params = model(family)
    for name in ("more words", "2:4", last):
        before = params
        params, config = TRANSFORMS[name].run(params, config)
        check_follows(before, params, name)
    params = jax.tree.map(np.asarray, params)
    folder = save_checkpoint(tmp_path / "model", config=config, task=task_of(family), params=params)
    assert same_structure(load_checkpoint(folder, task_of(family)).params, params)
    assert parts_equal(load_checkpoint(folder, task_of(family)).params, params)
