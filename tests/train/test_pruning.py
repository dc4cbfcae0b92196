"""Masks in the course of training: the schedule, the ranking beside numpy's, and steps of a small network over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import MeshConfig, PruneConfig
from flaxbert.core.arrays import SparseArray
from flaxbert.core.movement_array import MovementArray
from flaxbert.core.sharding import build_mesh, place_batch
from flaxbert.core.trees import flatten_parts
from flaxbert.errors import ConfigError
from flaxbert.train.losses import loss_for
from flaxbert.train.pruning import (
    MaskSchedule,
    PenalizedLoss,
    PrunedLeaf,
    check_schedule,
    keep_largest,
    keep_of_groups,
    penalized_forward,
    score_penalty,
)
from flaxbert.train.recipes.pruned import describe_pruning, settle_masks, with_masks
from flaxbert.train.state import create_state, join_params, state_shardings
from flaxbert.train.step import make_train_step
from flaxbert.transforms.sparsify import GroupSparsity, group_mask, smallest_mask
from tests.train.tiny_training import QUICK, TASK, bag_of_words, bag_of_words_params, make_batch, tiny_optimizer

KERNEL = "classifier.kernel"
AXES = {"embeddings.word.embedding": ("vocab", "embed"), KERNEL: ("embed", "labels"), "classifier.bias": ("labels",)}
STEPS = 10


@pytest.mark.parametrize("num_pruned", [0, 1, 5, 11, 12])
def test_the_smallest_go_as_numpy_says(num_pruned):
    judged = np.array([3, 1, 1, 2, 1, 0, 5, 0, 2, 2, 4, 1], np.float32)
    kept = jax.jit(keep_largest)(jnp.asarray(judged), jnp.int32(num_pruned))
    np.testing.assert_array_equal(kept, smallest_mask(judged, num_pruned))


@pytest.mark.parametrize("seed", range(6))
def test_of_any_numbers_the_smallest_go_and_of_equal_ones_the_first(seed):
    generator = np.random.default_rng(seed)
    judged = generator.standard_normal(257).astype(np.float32) * np.float32(10.0 ** generator.integers(-30, 30))
    if seed % 2:  # many equal ones, zeros of both signs among them
        judged = np.round(judged / np.abs(judged).max() * 3)
    judged[generator.integers(0, 257, 4)] = [np.inf, -np.inf, 0.0, -0.0]
    order = np.argsort(judged, kind="stable")
    for num_pruned in (0, 1, 100, 256, 257):
        expected = np.ones(257, bool)
        expected[order[:num_pruned]] = False
        np.testing.assert_array_equal(jax.jit(keep_largest)(judged, jnp.int32(num_pruned)), expected)


def test_what_is_no_number_breaks_no_pattern():
    judged = np.array([1, np.nan, 2, np.nan, -np.nan, 0, 3, 1], np.float32)
    assert np.asarray(keep_largest(jnp.asarray(judged), jnp.int32(2))).sum() == 6
    assert np.asarray(keep_largest(jnp.asarray(judged), jnp.int32(5)))[[1, 3, 4]].all()
    kept = np.asarray(keep_of_groups(jnp.asarray(judged)[:, None], 4, jnp.int32(2)))[:, 0]
    np.testing.assert_array_equal(kept, [True, False, True, False, False, False, True, True])


def test_groups_keep_as_many_as_told_and_end_with_the_pattern():
    judged = np.abs(np.random.default_rng(0).integers(0, 4, (2, 8, 3))).astype(np.float32)
    for num_kept in (4, 3, 2, 1):
        kept = keep_of_groups(jnp.asarray(judged), 4, jnp.int32(num_kept))
        expected = group_mask(judged, -2, GroupSparsity(num_kept, 4)) if num_kept < 4 else np.ones(judged.shape, bool)
        np.testing.assert_array_equal(kept, expected)


def schedule(method="magnitude", leaf=None, steps=STEPS, **options):
    config = PruneConfig(method, **{"rate": 0.5, "begin_rate": 0.2, "end_rate": 0.8, **options})
    return MaskSchedule(config, (leaf or PrunedLeaf(KERNEL, (8, 3)),), steps)


def test_the_share_rises_as_a_cubic_function_of_the_step():
    found = schedule(steps=100)
    assert (found.begin, found.end, found.every) == (20, 80, 1)
    shares = [float(found.progress(jnp.int32(step))) for step in (0, 20, 35, 50, 80, 100)]
    np.testing.assert_allclose(shares, [0, 0, 1 - 0.75**3, 1 - 0.5**3, 1, 1], atol=1e-6)
    assert schedule(steps=10_000).every == 60
    assert schedule(steps=10_000, every=7).every == 7


def test_masks_change_on_their_steps_only_and_rest_at_the_end():
    shape = (40, 30)
    found = schedule(leaf=PrunedLeaf(KERNEL, shape), steps=20, every=5)  # begin 4, end 16
    update, random = jax.jit(found), np.random.default_rng(0)
    frozen = {f"{KERNEL}@mask": jnp.ones(shape, bool)}
    changed = []
    for step in range(1, 21):
        values = {f"{KERNEL}@values": jnp.asarray(random.standard_normal(shape), jnp.float32)}
        after = update(jnp.int32(step), values, frozen)
        if not np.array_equal(after[f"{KERNEL}@mask"], frozen[f"{KERNEL}@mask"]):
            changed.append(step)
            assert not (np.asarray(after[f"{KERNEL}@mask"]) & ~np.asarray(frozen[f"{KERNEL}@mask"])).any()
        frozen = after
    assert changed == [9, 14, 16]
    assert int(np.sum(np.asarray(frozen[f"{KERNEL}@mask"]))) == 600


def test_blocks_and_global_ranks():
    values = np.zeros((4, 4), np.float32)
    values[:2, :2], values[:2, 2:], values[2:, :2], values[2:, 2:] = 1, 4, 3, 2
    parts, masks = {f"{KERNEL}@values": jnp.asarray(values)}, {f"{KERNEL}@mask": jnp.ones((4, 4), bool)}
    blocks = schedule(leaf=PrunedLeaf(KERNEL, (4, 4), 2, 2), block="2x2")
    mask = blocks.masks(jnp.int32(STEPS), parts, masks)[f"{KERNEL}@mask"]
    np.testing.assert_array_equal(mask, values > 2)
    both = (PrunedLeaf("a", (2, 2)), PrunedLeaf("b", (2, 2)))
    small, large = jnp.full((2, 2), 0.1), jnp.asarray([[1.0, 2.0], [0.01, 3.0]])
    together = MaskSchedule(PruneConfig("magnitude", 0.5, scope="global"), both, STEPS)
    ones = {"a@mask": jnp.ones((2, 2), bool), "b@mask": jnp.ones((2, 2), bool)}
    found = together.masks(jnp.int32(STEPS), {"a@values": small, "b@values": large}, ones)
    assert found["a@mask"].tolist() == [[False, False], [False, True]]
    assert found["b@mask"].tolist() == [[True, True], [False, True]]


def train(found, num_steps=STEPS, mesh_config=None, state=None, first=0, penalty=False):
    """Steps over the bag of words whose classifier is pruned; returns the state and its kinds."""
    params, optimizer = with_masks(bag_of_words_params(), found.leaves), tiny_optimizer()
    mesh = None if mesh_config is None else build_mesh(mesh_config)
    fresh, kinds = create_state(params, (), optimizer, leaf_axes=AXES, mesh=mesh)
    state = fresh if state is None else state
    forward, loss = bag_of_words, loss_for(TASK)
    if penalty:
        forward, loss = penalized_forward(forward, found.config), PenalizedLoss(loss)
    shardings = None if mesh is None else state_shardings(state, AXES, mesh, kinds)
    step = make_train_step(forward, loss, optimizer, kinds, shardings=shardings, mesh=mesh, masks=found)
    losses, compiled = [], None
    for index in range(first, num_steps):
        batch = make_batch(seed=index)
        if mesh is None:
            compiled = compiled or step.lower(state, batch, jax.random.key(1)).compile(QUICK)
            state, metrics = compiled(state, batch, jax.random.key(1))
        else:
            with jax.set_mesh(mesh):
                state, metrics = step(state, place_batch(batch, mesh), jax.random.key(1))
        losses.append(float(metrics.loss_sum) / float(metrics.weight))
    return state, kinds, losses


LEAVES = {
    "magnitude": PrunedLeaf(KERNEL, (8, 3)),
    "movement": PrunedLeaf(KERNEL, (8, 3), 1, 1, True),
    "rows": PrunedLeaf(KERNEL, (8, 3), 1, 3, True),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_trained_leaf_ends_with_its_share_of_zeros(name):
    method = "magnitude" if name == "magnitude" else "movement"
    state, kinds, _ = train(schedule(method, LEAVES[name]))
    leaf = settle_masks(jax.tree.map(np.asarray, join_params(state, kinds)))["classifier"]["kernel"]
    assert isinstance(leaf, SparseArray)
    assert int(np.sum(~leaf.mask)) == 12
    assert (leaf.values[~leaf.mask] == 0).all()
    assert leaf.values[leaf.mask].all()
    if name == "rows":
        assert set(leaf.mask.sum(axis=1).tolist()) == {0, 3}


@pytest.mark.parametrize("name", ["magnitude", "movement"])
def test_steps_after_a_stop_repeat_those_of_the_whole_run(name):
    found = schedule("magnitude" if name == "magnitude" else "movement", LEAVES[name])
    whole, kinds, _ = train(found)
    part, _, _ = train(found, 5)
    again, _, _ = train(found, STEPS, state=jax.tree.map(jnp.array, part), first=5)
    first, second = (flatten_parts(join_params(state, kinds)) for state in (whole, again))
    assert all(np.array_equal(first[part], second[part]) for part in first)


def test_a_mesh_gives_the_same_masks():
    found = schedule("movement", LEAVES["movement"])
    alone, _, _ = train(found, 8)
    spread, _, _ = train(found, 8, MeshConfig(fsdp=2))
    assert np.array_equal(alone.frozen[f"{KERNEL}@mask"], spread.frozen[f"{KERNEL}@mask"])


def test_scores_move_with_the_weights_and_do_not_decay():
    found = schedule("movement", LEAVES["movement"], begin_rate=0.5)
    state, _, _ = train(found, 1)
    assert np.asarray(state.trainable[f"{KERNEL}@scores"]).any()
    decays = tiny_optimizer(weight_decay=0.1).decays({f"{KERNEL}@scores": 0, f"{KERNEL}@values": 0})
    assert decays == {f"{KERNEL}@scores": 0.0, f"{KERNEL}@values": 0.1}


def test_the_penalty_is_the_mean_sigmoid_and_pushes_scores_down():
    config = PruneConfig("soft_movement", penalty=2.0, score_factor=4.0)
    scores = jnp.asarray([[0.0, 1.0], [-1.0, 0.5]])
    leaf = MovementArray(jnp.ones((2, 2)), scores, jnp.ones((2, 2), bool))

    def penalty(scores):
        return score_penalty({"kernel": MovementArray(leaf.values, scores, leaf.mask)}, config)

    sigmoid = 1 / (1 + np.exp(-4.0 * np.asarray(scores)))
    np.testing.assert_allclose(penalty(scores), 2.0 / 4.0 * sigmoid.mean(), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(penalty)(scores), 2.0 * sigmoid * (1 - sigmoid) / 4, rtol=1e-5)


def test_soft_movement_prunes_by_threshold_and_more_with_more_penalty():
    shares, losses = [], []
    for penalty in (0.0, 1000.0):
        found = schedule("soft_movement", LEAVES["movement"], threshold=0.49, penalty=penalty, score_factor=10.0)
        state, _, found_losses = train(found, penalty=True)
        shares.append(float(np.mean(~np.asarray(state.frozen[f"{KERNEL}@mask"]))))
        losses.append(found_losses[0])
    assert shares[0] < shares[1] == 1.0
    assert losses[1] > losses[0] + 10


def test_runs_that_are_too_short_or_prune_nothing_are_refused():
    check_schedule(schedule(steps=1))
    with pytest.raises(ConfigError, match="too short"):
        check_schedule(schedule(steps=1, begin_rate=0.9, end_rate=1.0))
    with pytest.raises(ConfigError, match="no matrix is left"):
        check_schedule(MaskSchedule(PruneConfig("magnitude"), (), 10))


@pytest.mark.parametrize(
    ("prune", "steps", "expected"),
    [
        (
            PruneConfig("magnitude", 0.8),
            1000,
            "Prunes single weights by magnitude, 80%: from step 100 to step 700, every 6.",
        ),
        (
            PruneConfig("magnitude", pattern="2:4"),
            100,
            "Prunes single weights by magnitude, 2:4: from step 10 to step 70, every 1.",
        ),
        (
            PruneConfig("movement", 0.5, block="4x4"),
            10_000,
            "Prunes blocks of 4x4 by movement, 50%: from step 1000 to step 7000, every 60.",
        ),
        (PruneConfig("soft_movement"), 100, "as many as the threshold says"),
    ],
)
def test_a_run_says_what_it_prunes_and_when(prune, steps, expected):
    lines = describe_pruning(MaskSchedule(prune, (), steps))
    assert expected in lines[0]
    assert len(lines) == 1


def test_movement_of_weights_in_a_short_run_is_advised_against():
    (_, advice) = describe_pruning(MaskSchedule(PruneConfig("movement", 0.5), (), 1000))
    assert "Take at least 5000 steps" in advice
    assert len(describe_pruning(MaskSchedule(PruneConfig("movement", 0.5, block="units"), (), 1000))) == 1
