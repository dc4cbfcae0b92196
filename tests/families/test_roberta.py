"""What RoBERTa has of its own: positions after padding, heads, names that depend on the task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.trees import flatten_names
from flaxbert.errors import ConfigError
from flaxbert.families.graph import abstract_params, forward, graph_definition
from flaxbert.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.readers import open_weights
from tests.weights.tiny import change_config, random_params, write_tiny

CONFIG = ModelConfig(
    family="roberta",
    vocab_size=31,
    hidden_size=12,
    num_hidden_layers=1,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=18,
    position_offset=2,
    pad_token_id=1,
    type_vocab_size=1,
    num_labels=3,
)


def run(config, params, task="token-classification", **batch):
    graphdef = graph_definition(config, task, Execution())
    return np.asarray(forward(graphdef, params, {name: jnp.asarray(rows) for name, rows in batch.items()}).logits)


def test_the_position_after_padding_is_the_first():
    config = ROBERTA.config_from_json(ROBERTA.config_to_json(CONFIG, "fill-mask"))
    assert (config.position_offset, config.max_length) == (2, 16)
    without = {
        key: value for key, value in ROBERTA.config_to_json(CONFIG, "fill-mask").items() if key != "pad_token_id"
    }
    assert ROBERTA.config_from_json(without).pad_token_id == 1


def test_positions_count_tokens_that_are_no_padding_on_either_side():
    params = jax.tree.map(jnp.asarray, random_params(CONFIG, "token-classification"))
    ids, mask = [7, 8, 9], [1, 1, 1]
    alone = run(CONFIG, params, input_ids=[ids])
    right = run(CONFIG, params, input_ids=[[*ids, 1, 1]], attention_mask=[[*mask, 0, 0]])
    left = run(CONFIG, params, input_ids=[[1, 1, *ids]], attention_mask=[[0, 0, *mask]])
    given = run(CONFIG, params, input_ids=[ids], position_ids=[[0, 1, 2]])
    for other in (right[:, :3], left[:, 2:], given):
        np.testing.assert_allclose(other, alone, atol=1e-5)
    moved = run(CONFIG, params, input_ids=[ids], position_ids=[[1, 2, 3]])
    assert np.abs(moved - alone).max() > 1e-3


def test_the_classifier_of_whole_inputs_has_a_layer_of_its_own():
    leaves = flatten_names(abstract_params(CONFIG, "sequence-classification"))
    assert leaves["classifier_dense.kernel"].shape == (12, 12)
    assert not any(name.startswith("pooler") for name in leaves)
    assert "classifier_dense.kernel" not in flatten_names(abstract_params(CONFIG, "token-classification"))


@pytest.mark.parametrize("family", [ROBERTA, XLM_ROBERTA, CAMEMBERT], ids=lambda family: family.model_type)
@pytest.mark.parametrize(
    ("task", "name"),
    [("sequence-classification", "classifier.out_proj.weight"), ("token-classification", "classifier.weight")],
)
def test_the_classifier_is_called_as_the_task_calls_it(family, task, name, tmp_path):
    folder = write_tiny(tmp_path / "model", task, CONFIG.replace(family=family.model_type))
    names = set(open_weights(folder))
    assert name in names
    assert "roberta.embeddings.word_embeddings.weight" in names
    change_config(folder, architectures=None)
    assert load_checkpoint(folder).task == task


def test_a_folder_that_does_not_name_its_family_is_known_by_its_prefix(tmp_path):
    folder = write_tiny(tmp_path / "model", "fill-mask", CONFIG)
    change_config(folder, model_type=None, architectures=None)
    assert load_checkpoint(folder).config.family == "roberta"


def test_a_head_that_the_family_does_not_have_is_refused(tmp_path):
    folder = write_tiny(tmp_path / "model", "fill-mask", CONFIG)
    with pytest.raises(ConfigError, match="A roberta has no head for next-sentence-prediction; it can be loaded for"):
        load_checkpoint(folder, "next-sentence-prediction")


def test_padding_that_leaves_no_positions_is_refused():
    with pytest.raises(ConfigError, match="position_offset 18 leaves none of the 18 positions"):
        CONFIG.replace(position_offset=18)
