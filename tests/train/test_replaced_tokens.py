"""Two networks as one function: what the discriminator sees, what it is asked, and where gradients go. The networks are tables here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import IGNORED_LABEL
from flaxbert.errors import ConfigError
from flaxbert.train.objectives import pretraining_counts
from flaxbert.train.replaced_tokens import ReplacedTokenForward, join, same_embeddings, take_embeddings

VOCAB, MASK, NEVER_DRAWN = 7, 6, -1e9
IDS = np.array([[1, MASK, 3, MASK], [2, 2, MASK, 0]], np.int32)
PLACES = np.array([[1, 3], [2, 0]], np.int32)
LABELS = np.array([[4, 5], [3, IGNORED_LABEL]], np.int32)
ORIGINAL = np.array([[1, 4, 3, 5], [2, 2, 3, 0]])
BATCH = {"input_ids": jnp.array(IDS), "masked_positions": jnp.array(PLACES), "labels": jnp.array(LABELS)}


class _Output:
    def __init__(self, logits):
        self.logits = logits


def _guess(params, batch, *, dropout_key):
    """A generator whose scores of a place are those of the place's row in its table of embeddings."""
    del dropout_key
    slots = jnp.take_along_axis(batch["input_ids"], batch["masked_positions"], axis=1)
    return _Output(params["embeddings"]["word"]["embedding"][slots])


def _judge(params, batch, *, dropout_key):
    """A discriminator that sums the embedding of each token."""
    del dropout_key
    assert set(batch) == {"input_ids", "labels"}
    return _Output(params["embeddings"]["word"]["embedding"][batch["input_ids"]].sum(-1))


def tree(seed):
    return {"embeddings": {"word": {"embedding": jax.random.normal(jax.random.key(seed), (VOCAB, VOCAB))}}}


def always(word):
    """A generator that draws one word everywhere."""
    table = jnp.full((VOCAB, VOCAB), NEVER_DRAWN).at[:, word].set(0.0)
    return {"embeddings": {"word": {"embedding": table}}}


def numbered():
    """A discriminator whose score of a token is its id."""
    table = jnp.zeros((VOCAB, VOCAB)).at[:, 0].set(jnp.arange(VOCAB, dtype=jnp.float32))
    return {"embeddings": {"word": {"embedding": table}}}


@pytest.mark.parametrize("word", [3, 4])
def test_the_discriminator_sees_the_drawn_words_and_is_asked_which_differ(word):
    forward = ReplacedTokenForward(_guess, _judge, "none")
    found = forward(join(always(word), numbered(), "none"), BATCH)
    seen = np.array([[1, word, 3, word], [2, 2, word, 0]])
    np.testing.assert_array_equal(found.replaced_logits, seen)
    np.testing.assert_array_equal(found.replaced, seen != ORIGINAL)
    assert found.logits.shape == (2, 2, VOCAB)


def test_words_are_drawn_anew_with_every_key_and_the_same_in_evaluations():
    forward = ReplacedTokenForward(_guess, _judge, "none")
    many = {name: jnp.tile(array, (64, 1)) for name, array in BATCH.items()}
    params = join({"embeddings": {"word": {"embedding": jnp.zeros((VOCAB, VOCAB))}}}, numbered(), "none")
    draw = functools.partial(forward, params, many)
    first, second = (np.asarray(draw(dropout_key=jax.random.key(seed)).replaced_logits) for seed in (0, 1))
    assert (first != second).any()
    np.testing.assert_array_equal(draw().replaced_logits, draw().replaced_logits)
    drawn = first.reshape(64, 2, 4)[:, 0, 1]
    counts = np.bincount(drawn.astype(int), minlength=VOCAB)
    assert (counts > 0).all(), "equal scores draw every word"
    np.testing.assert_array_equal(first.reshape(64, 2, 4)[:, 1, 0], 2, "a slot without a label changes nothing")


@pytest.mark.parametrize("sharing", ["none", "tied", "disentangled"])
def test_where_the_gradient_of_the_discriminator_goes(sharing):
    forward = ReplacedTokenForward(_guess, _judge, sharing)
    params = join(tree(0), tree(1), sharing)

    def judged(params):
        return forward(params, BATCH).replaced_logits.sum()

    def guessed(params):
        return (forward(params, BATCH).logits ** 2).sum()

    def moves(function, network):
        leaves = jax.tree.leaves(jax.grad(function)(params)[network])
        return any(bool(jnp.abs(leaf).sum() > 0) for leaf in leaves)

    assert moves(judged, "discriminator")
    assert not moves(judged, "generator")
    assert moves(guessed, "discriminator") == (sharing == "tied")
    assert moves(guessed, "generator") == (sharing != "tied")


@pytest.mark.slow
def test_rows_that_fill_up_a_batch_count_for_nothing():
    forward = ReplacedTokenForward(_guess, _judge, "none")
    params = join(always(3), numbered(), "none")
    one = {"segment_ids": jnp.ones_like(BATCH["input_ids"]), "example_weight": jnp.ones(2)}
    counts = pretraining_counts(forward(params, BATCH), {**BATCH, **one})
    assert (counts["replaced_count"], counts["replaced_changed"]) == (8, 2)
    filled = {name: jnp.concatenate([array, array[:1], array[:1]]) for name, array in {**BATCH, **one}.items()}
    filled["labels"] = filled["labels"].at[2:].set(IGNORED_LABEL)
    filled["example_weight"] = filled["example_weight"].at[2:].set(0.0)
    inputs = {name: filled[name] for name in BATCH}
    again = pretraining_counts(forward(params, inputs), filled)
    assert counts.keys() == again.keys()
    for name, value in counts.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("sharing", ["none", "tied", "disentangled"])
def test_joined_trees_come_apart_again(sharing):
    generator, discriminator = tree(0), tree(1)
    forward = ReplacedTokenForward(_guess, _judge, sharing)
    found = forward.split(join(generator, discriminator, sharing))
    expected = (discriminator if sharing == "tied" else generator, discriminator)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            one["embeddings"]["word"]["embedding"], other["embeddings"]["word"]["embedding"], rtol=1e-6, atol=1e-6
        )


def test_tables_of_different_shapes_are_not_shared():
    small = {"embeddings": {"word": {"embedding": np.zeros((VOCAB, 2))}}}
    for sharing in ("tied", "disentangled"):
        with pytest.raises(ConfigError, match=r"can not share embeddings of shapes \[7, 2\] and \[7, 7\]"):
            join(small, tree(0), sharing)
        with pytest.raises(ConfigError, match="can not share embeddings"):
            take_embeddings(small, tree(0), sharing)
    assert not same_embeddings(small, tree(0))
    assert same_embeddings(tree(1), take_embeddings(tree(0), tree(1), "tied"))
    assert take_embeddings(small, tree(0), "none") is small
