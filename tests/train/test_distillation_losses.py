"""Every loss of a student against its formula, written out in numpy or computed by torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxbert.train import distillation_losses as compare

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
"""float32 against the same formula in float64: numbers of size 1 that were added up a few dozen times."""

RANDOM = np.random.default_rng(0)


def draw(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def softmax(values):
    values = np.exp(np.asarray(values, np.float64) - np.max(values, axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_torchs_divergence_times_the_squared_temperature(temperature):
    student, teacher = 3 * draw(5, 7), 3 * draw(5, 7)
    targets = compare.teacher_probabilities([jnp.asarray(teacher)], [2.0], jnp.float32(temperature))
    found = compare.soft_target_losses(jnp.asarray(student), targets, jnp.float32(temperature))
    expected = (
        torch.nn.functional.kl_div(
            torch.log_softmax(torch.tensor(student) / temperature, -1),
            torch.softmax(torch.tensor(teacher) / temperature, -1),
            reduction="none",
        ).sum(-1)
        * temperature**2
    )
    np.testing.assert_allclose(found, expected.numpy(), **CLOSE)


def test_soft_targets_have_the_gradient_of_the_cross_entropy():
    student, teacher = jnp.asarray(draw(4, 6)), jnp.asarray(draw(4, 6))
    targets, one = jax.nn.softmax(teacher), jnp.float32(1.0)
    gradient = jax.grad(lambda scores: jnp.sum(compare.soft_target_losses(scores, targets, one)))(student)
    np.testing.assert_allclose(gradient, jax.nn.softmax(student) - targets, **CLOSE)


def test_each_row_can_have_a_temperature_of_its_own():
    student, teacher = draw(2, 3, 5), draw(2, 3, 5)
    temperature = np.asarray([1.0, 3.0], np.float32).reshape(2, 1, 1)
    targets = compare.teacher_probabilities([jnp.asarray(teacher)], [1.0], jnp.asarray(temperature))
    found = compare.soft_target_losses(jnp.asarray(student), targets, jnp.asarray(temperature))
    for row, value in enumerate((1.0, 3.0)):
        alone = compare.soft_target_losses(jnp.asarray(student[row]), targets[row], jnp.float32(value))
        np.testing.assert_allclose(found[row], alone, **CLOSE)


def test_teachers_are_averaged_as_probabilities_by_weight():
    first, second = draw(3, 4), draw(3, 4)
    found = compare.teacher_probabilities([jnp.asarray(first), jnp.asarray(second)], [1.0, 3.0], jnp.float32(2.0))
    np.testing.assert_allclose(found, 0.25 * softmax(first / 2) + 0.75 * softmax(second / 2), **CLOSE)


def test_targets_of_zero_and_hidden_scores_give_no_nan():
    student = jnp.asarray([[0.5, -1.0, -1e30]], jnp.float32)
    found = compare.soft_target_losses(student, jnp.asarray([[1.0, 0.0, 0.0]], jnp.float32), jnp.float32(1.0))
    np.testing.assert_allclose(found, -np.log(softmax([[0.5, -1.0]])[:, 0]), **CLOSE)


def test_top_scores_with_all_labels_kept_are_the_whole_divergence():
    student, teacher = draw(6, 5), draw(6, 5)
    ids = np.argsort(-teacher, axis=-1).astype(np.int32)
    kept = np.take_along_axis(softmax(teacher), ids, axis=-1).astype(np.float32)
    found = compare.top_soft_target_losses(jnp.asarray(student), jnp.asarray(ids), jnp.asarray(kept))
    expected = compare.soft_target_losses(
        jnp.asarray(student), jnp.asarray(softmax(teacher), jnp.float32), jnp.float32(1)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # a rest below 1e-7 counts as none


def test_top_scores_put_the_others_together_and_are_a_lower_bound():
    student, teacher = draw(6, 9), draw(6, 9)
    probabilities, own = softmax(teacher), softmax(student)
    ids = np.argsort(-teacher, axis=-1)[:, :3].astype(np.int32)
    kept, mine = (np.take_along_axis(values, ids, axis=-1) for values in (probabilities, own))
    found = compare.top_soft_target_losses(jnp.asarray(student), jnp.asarray(ids), jnp.asarray(kept, jnp.float32))
    rest, my_rest = 1 - kept.sum(-1), 1 - mine.sum(-1)
    expected = (kept * np.log(kept / mine)).sum(-1) + rest * np.log(rest / my_rest)
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # differences from 1 in float32
    assert (expected <= (probabilities * np.log(probabilities / own)).sum(-1) + 1e-9).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_several_labels_are_coins(temperature):
    student, teacher = draw(4, 3), draw(4, 3)
    chances = 1 / (1 + np.exp(-teacher.astype(np.float64) / temperature))
    own = 1 / (1 + np.exp(-student.astype(np.float64) / temperature))
    divergence = chances * np.log(chances / own) + (1 - chances) * np.log((1 - chances) / (1 - own))
    found = compare.soft_logistic_losses(
        jnp.asarray(student), jnp.asarray(chances, jnp.float32), jnp.float32(temperature)
    )
    np.testing.assert_allclose(found, temperature**2 * divergence.mean(-1), rtol=1e-4, atol=1e-5)


def test_squared_differences_are_means_over_the_width():
    student, teacher = draw(2, 3, 8), draw(2, 3, 8)
    found = compare.squared_differences(jnp.asarray(student), jnp.asarray(teacher))
    expected = torch.nn.functional.mse_loss(torch.tensor(student), torch.tensor(teacher), reduction="none").mean(-1)
    np.testing.assert_allclose(found, expected.numpy(), **CLOSE)


def test_cosines_and_patient_losses_are_those_of_torch():
    student, teacher = draw(5, 8), draw(5, 8)
    found = compare.cosine_distances(jnp.asarray(student), jnp.asarray(teacher))
    cosine = torch.nn.functional.cosine_similarity(torch.tensor(student), torch.tensor(teacher), dim=-1).numpy()
    np.testing.assert_allclose(found, 1 - cosine, **CLOSE)
    # |a - b|**2 = 2 - 2 cos of vectors of length 1
    np.testing.assert_allclose(
        compare.patient_losses(jnp.asarray(student), jnp.asarray(teacher)), 2 - 2 * cosine, **CLOSE
    )
    zero = jax.grad(lambda vectors: jnp.sum(compare.cosine_distances(vectors, jnp.asarray(teacher))))(jnp.zeros((5, 8)))
    assert np.isfinite(zero).all()


def visible_tokens():
    return np.asarray([[1, 1, 1, 1], [1, 1, 0, 0]], bool)


def test_attention_scores_are_compared_where_keys_are_seen():
    query, key, other_query, other_key = draw(2, 3, 4, 6), draw(2, 3, 4, 6), draw(2, 3, 4, 5), draw(2, 3, 4, 5)
    student = compare.relation_scores(jnp.asarray(query), jnp.asarray(key))
    teacher = compare.relation_scores(jnp.asarray(other_query), jnp.asarray(other_key))
    found = compare.attention_score_losses(student, teacher, jnp.asarray(visible_tokens())[:, None])
    for row, length in enumerate((4, 2)):
        mine = np.einsum("hqd,hkd->hqk", query[row].astype(np.float64), key[row]) / np.sqrt(6)
        theirs = np.einsum("hqd,hkd->hqk", other_query[row].astype(np.float64), other_key[row]) / np.sqrt(5)
        expected = ((mine - theirs)[:, :, :length] ** 2).mean(axis=(0, 2))
        np.testing.assert_allclose(found[row], expected, rtol=1e-4)  # squares of differences of size 2


def test_relations_are_divergences_over_visible_tokens():
    student, teacher = draw(2, 3, 4, 4), draw(2, 3, 4, 4)
    found = compare.relation_losses(jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(visible_tokens())[:, None])
    for row, length in enumerate((4, 2)):
        p, q = softmax(teacher[row][..., :length]), softmax(student[row][..., :length])
        np.testing.assert_allclose(found[row], (p * np.log(p / q)).sum(-1).mean(0), **CLOSE)


def test_relation_heads_cut_the_width_of_all_heads_anew():
    vectors = draw(2, 6, 3, 4)
    found = compare.split_relation_heads(jnp.asarray(vectors), 8)
    flat = np.swapaxes(vectors, 1, 2).reshape(2, 3, 24)
    assert found.shape == (2, 8, 3, 3)
    np.testing.assert_array_equal(found[:, 2], flat[..., 6:9])
    np.testing.assert_array_equal(compare.split_relation_heads(jnp.asarray(vectors), 6), vectors)
