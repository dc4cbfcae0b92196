"""The public model on a tiny folder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert import inference
from flaxbert.errors import ConfigError, DataError
from flaxbert.model import load
from flaxbert.weights.sentence_transformers import SentencePooling
from tests.weights.tiny import write_tiny

TEXTS = ["a fine film", "bad", "the film was bad . a fine film", "fine films"]
SAME = 2e-5
"""Padding to another length changes the order of float32 sums."""


@pytest.fixture
def model(tmp_path):
    return load(write_tiny(tmp_path / "model"))


def test_apply_takes_lists_and_is_pure(model):
    output = model.apply(model.params, {"input_ids": [[2, 5, 6, 3]], "attention_mask": [[1, 1, 1, 1]]})
    assert output.logits.shape == (1, 3)
    gradient = jax.grad(lambda params: model.apply(params, {"input_ids": [[2, 5, 3]]}).logits.sum())(model.params)
    assert float(jnp.abs(gradient["classifier"]["bias"]).sum()) > 0


def test_apply_refuses_what_the_model_does_not_know(model):
    with pytest.raises(DataError, match="input_ids holds 31"):
        model.apply(model.params, {"input_ids": [[31]]})
    with pytest.raises(DataError, match="16"):
        model.apply(model.params, {"input_ids": [[1] * 17]})


def test_predictions_do_not_depend_on_the_company(model):
    together = np.asarray(model.predict_logits(TEXTS, batch_size=4))
    alone = np.concatenate([np.asarray(model.predict_logits([text])) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=SAME)
    assert [p.label for p in model.predict(np.asarray(TEXTS))] == [p.label for p in model.predict(TEXTS)]
    assert model.predict([]) == []


def test_pairs_are_tuples_or_two_lists(model):
    pairs = [("a fine", "film"), ("bad", "film")]
    one = model.predict_logits(pairs)
    two = model.predict_logits([a for a, _ in pairs], [b for _, b in pairs])
    np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    with pytest.raises(DataError, match="second texts"):
        model.predict(["a", "b"], ["c"])


def test_mixed_lengths_compile_a_small_set_of_shapes(model, monkeypatch):
    shapes = set()
    original = inference.compiled_forward

    def spy(*arguments):
        program = original(*arguments)

        def run(params, batch):
            shapes.add(batch["input_ids"].shape)
            return program(params, batch)

        return run

    monkeypatch.setattr(inference, "compiled_forward", spy)
    model.predict_logits([" ".join(["fine"] * n) for n in range(1, 14) for _ in range(3)], batch_size=8)
    assert {length for _, length in shapes} == {16}
    assert {rows for rows, _ in shapes} <= {8, 1, 2, 4}


def test_a_model_is_immutable_and_saves_what_it_holds(model, tmp_path):
    with pytest.raises(AttributeError):
        model.task = "fill-mask"  # type: ignore[misc]
    model.save(tmp_path / "copy")
    copy = load(tmp_path / "copy")
    np.testing.assert_array_equal(np.asarray(copy.predict_logits(TEXTS)), np.asarray(model.predict_logits(TEXTS)))


def test_scanned_layers_and_precision_are_ways_to_run_the_same_model(model):
    plain = np.asarray(model.predict_logits(TEXTS))
    scanned = model.with_execution(scan_layers=True)
    np.testing.assert_allclose(np.asarray(scanned.predict_logits(TEXTS)), plain, atol=SAME)
    assert scanned.with_execution(scan_layers=False).params.keys() == model.params.keys()
    assert np.isfinite(np.asarray(model.with_execution(precision="bfloat16").predict_logits(TEXTS))).all()


def test_encode_pools_and_normalises(tmp_path):
    model = load(write_tiny(tmp_path / "model"), task="sentence-similarity")
    vectors = model.encode(TEXTS, normalize=True)
    assert vectors.shape == (4, 12)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    with pytest.raises(ConfigError, match="no head"):
        model.predict_logits(TEXTS)


def test_encode_by_a_classifier_says_how_the_folder_is_loaded_for_it(model):
    with pytest.raises(ConfigError, match=r"keeps no vectors of all tokens.*task='sentence-similarity'"):
        model.encode(TEXTS)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_are_put_before_texts(tmp_path, include_prompt):
    pooling = SentencePooling(prompts={"query": "the film "}, include_prompt=include_prompt, normalize=True)
    model = load(write_tiny(tmp_path / "model"), task="sentence-similarity").replace(pooling=pooling)
    plain, asked = model.encode(TEXTS), model.encode(TEXTS, prompt_name="query")
    assert not np.allclose(plain, asked)
    prefixed = model.encode(["the film " + text for text in TEXTS])
    assert np.allclose(prefixed, asked) == include_prompt
    np.testing.assert_array_equal(model.encode(TEXTS, prompt="the film "), asked)
    by_default = model.replace(pooling=pooling.replace(default_prompt="query"))
    np.testing.assert_array_equal(by_default.encode(TEXTS), asked)
    np.testing.assert_array_equal(by_default.encode(TEXTS, prompt=""), plain)
    with pytest.raises(ConfigError, match=r"no prompt 'qury'; it has query\. Did you mean 'query'"):
        model.encode(TEXTS, prompt_name="qury")
    with pytest.raises(DataError, match="not pairs"):
        model.encode([("a", "b")])
