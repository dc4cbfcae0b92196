"""A narrower encoder that is fitted to a wide one."""

import numpy as np
import pytest

from flaxbert.errors import ConfigError
from flaxbert.train.narrowing import _narrow_scores, check_can_narrow, fit, principal_basis

RANDOM = np.random.default_rng(0)


def test_a_fit_finds_what_the_targets_were_made_of():
    inputs, kernel, bias = RANDOM.standard_normal((200, 6)), RANDOM.standard_normal((6, 4)), RANDOM.standard_normal(4)
    found, offset = fit(inputs, inputs @ kernel + bias, ridge=0.0)
    np.testing.assert_allclose(found, kernel, atol=1e-5)  # stored as float32
    np.testing.assert_allclose(offset, bias, atol=1e-5)


def test_a_fit_of_inputs_that_never_differ_is_their_mean():
    found, offset = fit(np.ones((10, 3)), RANDOM.standard_normal((10, 2)) * 0 + 5)
    np.testing.assert_allclose(np.ones(3) @ found + offset, 5, atol=1e-6)


def test_a_basis_keeps_the_directions_of_most_variance():
    hidden = RANDOM.standard_normal((500, 3)) @ RANDOM.standard_normal((3, 10))
    noisy = (hidden + 0.01 * RANDOM.standard_normal(hidden.shape)).astype(np.float32)
    basis = principal_basis(noisy, 3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-5)
    centered = noisy - noisy.mean(0)
    assert np.mean((centered - centered @ basis @ basis.T) ** 2) < 2e-4  # what is left is the noise, of variance 1e-4


def test_narrow_queries_and_keys_have_the_best_scores_of_their_rank():
    query, key = RANDOM.standard_normal((60, 8)), RANDOM.standard_normal((60, 8))
    narrow_query, narrow_key = _narrow_scores(query, key, 5)
    scores = query @ key.T / np.sqrt(8)
    left, values, right = np.linalg.svd(scores, full_matrices=False)
    best = left[:, :5] * values[:5] @ right[:5]
    np.testing.assert_allclose(narrow_query @ narrow_key.T / np.sqrt(5), best, atol=1e-3)  # a small ridge in the roots


def test_blocks_that_differ_from_berts_are_refused():
    with pytest.raises(ConfigError, match="knows BERT's blocks"):
        check_can_narrow(["encoder.layers.0.attention.query_key_value.kernel"], "modernbert")
