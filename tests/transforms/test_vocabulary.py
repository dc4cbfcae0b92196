"""Growing and shrinking the vocabulary."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.core.rules import Rule
from flaxbert.core.trees import flatten_names
from flaxbert.errors import ConfigError
from flaxbert.transforms import quantize, resize_vocabulary
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
