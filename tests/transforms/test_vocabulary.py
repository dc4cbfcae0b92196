"""Growing and shrinking the vocabulary."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.core.rules import Rule
from flaxbert.core.trees import flatten_names, leaf_names
from flaxbert.errors import ConfigError
from flaxbert.families import get_family
from flaxbert.transforms import keep_tokens, quantize, resize_vocabulary
from flaxbert.transforms.quantize import QuantizationSpec
from tests.nn.models import run, small_batch, small_config, small_params


@pytest.mark.parametrize("size", [43, 40, 11])
@pytest.mark.parametrize("library", [np, jnp])
def test_rows_are_kept_and_new_ones_are_the_mean(size, library):
    config = small_config("bert", "fill-mask")
    params = small_params(config, "fill-mask")
    before = flatten_names(params)
    if library is np:
        params = {**params, "masked_lm": {**params["masked_lm"], "bias": np.asarray(params["masked_lm"]["bias"])}}
    after = flatten_names(resize_vocabulary(params, size))
    assert list(after) == list(before)
    for name in ("embeddings.word.embedding", "masked_lm.bias"):
        old, new = np.asarray(before[name]), np.asarray(after[name])
        assert new.shape == (size, *old.shape[1:])
        kept = min(size, len(old))
        np.testing.assert_array_equal(new[:kept], old[:kept])
        np.testing.assert_allclose(new[kept:], np.broadcast_to(old.mean(axis=0), new[kept:].shape), atol=1e-6)
    unchanged = set(before) - {"embeddings.word.embedding", "masked_lm.bias"}
    assert all(after[name] is before[name] for name in unchanged)


def test_known_tokens_keep_their_scores():
    config = small_config("bert", "fill-mask")
    params, batch = small_params(config, "fill-mask"), small_batch(config)
    larger = config.replace(vocab_size=config.vocab_size + 3)
    old = run(params, batch, config=config, task="fill-mask").logits
    new = run(resize_vocabulary(params, larger.vocab_size), batch, config=larger, task="fill-mask").logits
    np.testing.assert_allclose(new[..., : config.vocab_size], old, atol=1e-5)
    assert float(jnp.max(new[..., -1])) < float(jnp.max(new))


def test_a_size_that_makes_no_sense_and_compressed_tables_are_refused():
    params = small_params(small_config("bert", "fill-mask"), "fill-mask")
    with pytest.raises(ConfigError, match="0 tokens is too small"):
        resize_vocabulary(params, 0)
    rules = (Rule(r"embeddings\.word\.embedding", QuantizationSpec()), Rule(".*", None))
    with pytest.raises(ConfigError, match="before compressing"):
        resize_vocabulary(quantize(params, rules)[0], 50)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_kept_tokens_have_the_scores_they_had(family):
    config = small_config(family, "fill-mask")
    params, batch = small_params(config, "fill-mask"), small_batch(config)
    kept = np.array([0, 1, *range(2, config.vocab_size, 3)])
    batch["input_ids"] = np.asarray(kept, np.int32)[batch["input_ids"] % len(kept)]
    batch["input_ids"][batch["attention_mask"] == 0] = config.pad_token_id
    axes = get_family(family).parameter_axes(leaf_names(params))
    smaller, small, report = keep_tokens(config.replace(extra={"sep_token_id": 5}), params, axes, kept)
    assert smaller.vocab_size == len(kept)
    assert smaller.extra == {"sep_token_id": 3}
    assert report.notes == (f"{len(kept)} of 40 tokens are left.",)
    renumbered = {**batch, "input_ids": np.searchsorted(kept, batch["input_ids"]).astype(np.int32)}
    old = np.asarray(run(params, batch, config=config, task="fill-mask").logits)
    new = np.asarray(run(small, renumbered, config=smaller, task="fill-mask").logits)
    real = batch["attention_mask"] == 1
    np.testing.assert_allclose(new[real], old[real][:, kept], atol=2e-5)


@pytest.mark.parametrize(
    ("family", "kept", "message"),
    [
        ("bert", [], "rising ids"),
        ("bert", [0, 2, 1], "rising ids"),
        ("bert", [0, 40], "rising ids from 0 to 39"),
        ("bert", [1, 2], "Padding has id 0"),
        ("roberta", [1, 2, 3], "keep all tokens before it"),
    ],
)
def test_tokens_that_can_not_be_kept_are_refused(family, kept, message):
    config = small_config(family, "fill-mask")
    params = small_params(config, "fill-mask")
    axes = get_family(family).parameter_axes(leaf_names(params))
    with pytest.raises(ConfigError, match=message):
        keep_tokens(config, params, axes, np.asarray(kept, np.int64))
