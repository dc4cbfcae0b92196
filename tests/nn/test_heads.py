"""Pooling modes and task heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import FIRST_TOKEN_TASKS, Execution
from flaxbert.core.trees import flatten_names
from flaxbert.errors import ConfigError
from flaxbert.nn.heads import pool
from tests.helpers import slow_unless
from tests.nn.models import run, small_batch, small_config, small_params

HIDDEN = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], np.int32)

TOLERANCE = 1e-5
"""Relative: float32 sums of five numbers, and of 24 in the heads."""


def expected(mode):
    rows = []
    for hidden, mask in zip(HIDDEN.astype(np.float64), MASK.astype(bool), strict=True):
        real, places = hidden[mask], np.flatnonzero(mask) + 1
        rows.append(
            {
                "cls": lambda hidden=hidden: hidden[0],
                "mean": lambda real=real: real.mean(0),
                "max": lambda real=real: real.max(0),
                "mean_sqrt_len_tokens": lambda real=real: real.sum(0) / np.sqrt(len(real)),
                "weightedmean": lambda real=real, places=places: (real * places[:, None]).sum(0) / places.sum(),
                "lasttoken": lambda real=real: real[-1],
            }[mode]()
        )
    return np.stack(rows)


MODES = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_pooling_of_padding_on_either_side(mode, dtype):
    pooled = pool(jnp.asarray(HIDDEN).astype(dtype), jnp.asarray(MASK), mode)
    assert pooled.dtype == jnp.float32
    tolerance = TOLERANCE if dtype == jnp.float32 else 2e-2  # inputs rounded at 2**-9, sums of them in float32
    np.testing.assert_allclose(pooled, expected(mode), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_padding_does_not_reach_the_vector(mode):
    if mode == "cls":
        mask, padded = jnp.asarray(MASK[:2]), HIDDEN[:2].copy()
        padded[1, 2:] = 99.0
        changed = pool(jnp.asarray(padded), mask, mode)
        np.testing.assert_array_equal(changed, pool(jnp.asarray(HIDDEN[:2]), mask, mode))
        return
    padded = np.where(MASK[:, :, None] > 0, HIDDEN, np.float32(99.0))
    np.testing.assert_array_equal(
        pool(jnp.asarray(padded), jnp.asarray(MASK), mode), pool(jnp.asarray(HIDDEN), jnp.asarray(MASK), mode)
    )


@pytest.mark.parametrize("mode", MODES)
def test_an_input_without_real_tokens_gives_no_nan_and_zero_means(mode):
    pooled = np.asarray(pool(jnp.asarray(HIDDEN), jnp.zeros((3, 5), jnp.int32), mode))
    assert np.isfinite(pooled).all()
    if "mean" in mode:
        assert (pooled == 0).all()


def test_an_unknown_mode_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'meen'.*cls, mean, max, mean_sqrt_len_tokens, weightedmean or lasttoken"):
        pool(jnp.asarray(HIDDEN), jnp.asarray(MASK), "meen")


CONFIG = small_config()
LENGTH = 12
SHAPES = {
    "sequence-classification": ((4, 3), True, False),
    "token-classification": ((4, LENGTH, 3), False, False),
    "fill-mask": ((4, LENGTH, 40), False, False),
    "next-sentence-prediction": ((4, 2), True, False),
    "pretraining": ((4, LENGTH, 40), True, True),
    "sentence-similarity": (None, True, False),
    "feature-extraction": (None, True, False),
}


@pytest.mark.parametrize("task", SHAPES)
def test_every_task_returns_what_it_says(task):
    shape, pooled, next_sentence = SHAPES[task]
    output = run(small_params(CONFIG, task), small_batch(CONFIG), config=CONFIG, task=task)
    if task in FIRST_TOKEN_TASKS:
        assert output.last_hidden_state is None
    else:
        assert output.last_hidden_state.shape == (4, LENGTH, 24)
    assert (output.logits is None) if shape is None else (output.logits.shape == shape)
    assert output.logits is None or output.logits.dtype == jnp.float32
    assert (output.pooled is not None) == pooled
    assert (output.next_sentence_logits is not None) == next_sentence


def test_scores_of_words_are_products_with_the_word_embedding():
    params = small_params(CONFIG, "fill-mask")
    leaves = {name: np.asarray(leaf, np.float64) for name, leaf in flatten_names(params).items()}
    output = run(params, small_batch(CONFIG), config=CONFIG, task="fill-mask")
    hidden = np.asarray(output.last_hidden_state, np.float64)
    hidden = hidden @ leaves["masked_lm.transform.kernel"] + leaves["masked_lm.transform.bias"]
    hidden = hidden * 0.5 * (1 + np.vectorize(__import__("math").erf)(hidden / np.sqrt(2)))
    centred = hidden - hidden.mean(-1, keepdims=True)
    hidden = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + CONFIG.layer_norm_epsilon)
    hidden = hidden * leaves["masked_lm.norm.scale"] + leaves["masked_lm.norm.bias"]
    scores = hidden @ leaves["embeddings.word.embedding"].T + leaves["masked_lm.bias"]
    assert np.abs(np.asarray(output.logits) - scores).max() < TOLERANCE * np.abs(scores).max()


def test_the_classifier_reads_the_pooled_first_token():
    params = small_params(CONFIG)
    leaves = {name: np.asarray(leaf, np.float64) for name, leaf in flatten_names(params).items()}
    output = run(params, small_batch(CONFIG), config=CONFIG, keep_hidden=True)
    first = np.asarray(output.last_hidden_state, np.float64)[:, 0]
    pooled = np.tanh(first @ leaves["pooler.dense.kernel"] + leaves["pooler.dense.bias"])
    np.testing.assert_allclose(output.pooled, pooled, rtol=TOLERANCE, atol=TOLERANCE)
    logits = pooled @ leaves["classifier.kernel"] + leaves["classifier.bias"]
    np.testing.assert_allclose(output.logits, logits, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("task", "dropout_key", "remat"),
    [
        ("sequence-classification", None, "none"),
        *slow_unless(
            lambda case: False,
            [
                ("multiple-choice", 3, "none"),
                ("next-sentence-prediction", 3, "none"),
                ("sequence-classification", 3, "none"),
                ("sequence-classification", 3, "attention"),
                *(("sequence-classification", None, remat) for remat in ("attention", "full")),
            ],
            several=True,
        ),
    ],
)
def test_finishing_the_first_token_alone_changes_nothing(task, dropout_key, remat):
    config = CONFIG.replace(hidden_dropout_rate=0.2, attention_dropout_rate=0.2)
    batch = small_batch(config)
    if task == "multiple-choice":
        config = config.replace(num_labels=1)
        batch = {name: rows.reshape(2, 2, -1) for name, rows in batch.items()}
    params = small_params(config, task)
    key = None if dropout_key is None else jax.random.key(dropout_key)

    def loss(params, **how):
        output = run(params, batch, config=config, task=task, dropout_key=key, **how)
        return jnp.sum(jnp.sin(output.logits)), output.logits

    execution = Execution(remat=remat)
    (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params, execution=execution)
    (_, expected), wanted = jax.value_and_grad(loss, has_aux=True)(params, execution=execution, keep_hidden=True)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
    for gradient, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(gradient, other, atol=TOLERANCE)
