"""Pruned models in stock transformers: equal outputs where stock classes can have the sizes, a clear end where they can not."""

import numpy as np
import pytest

from flaxbert.core.trees import leaf_names
from flaxbert.families import get_family
from flaxbert.transforms.budgets import UnitBudget, choose_units
from flaxbert.transforms.depth import keep_layers
from flaxbert.transforms.shrink import shrink
from flaxbert.transforms.units import find_units, magnitude_scores, mask_units
from flaxbert.transforms.vocabulary import keep_tokens
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.save import save_checkpoint
from tests.helpers import slow_unless
from tests.parity.oracle import (
    Case,
    both_outputs,
    load_torch,
    make_batch,
    make_torch_model,
    our_outputs,
    save_torch,
    worst_excess,
)

pytestmark = pytest.mark.parity

TASK = "token-classification"
SIZES = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 32}
FAMILIES = ("bert", "roberta", "distilbert", "electra", "mpnet", "convbert", "deberta-v2", "modernbert", "nomic_bert")


def loaded_case(family, tmp_path):
    case = Case("pruned", TASK, SIZES, family=family)
    loaded = load_checkpoint(save_torch(make_torch_model(case), tmp_path / "stock"), TASK)
    return case, loaded, get_family(family)


def prune_units(config, params, family, kind, budget, even=True):
    axes = family.parameter_axes(leaf_names(params))
    units = find_units(config, params, axes, kind, family.head_axes if kind == "heads" else family.neuron_axes)
    masked = mask_units(params, units, choose_units(units, magnitude_scores(params, units), budget, even))
    carried = {kind: family.head_axes if kind == "heads" else family.neuron_axes}
    return shrink(config, masked, axes, carried, even=even)[:2]


def compare(case, config, params, batch, tmp_path):
    folder = save_checkpoint(tmp_path / "pruned", config=config, task=TASK, params=params)
    ours = our_outputs(config, TASK, load_checkpoint(folder, TASK).params, batch)
    assert worst_excess(ours, *both_outputs(load_torch(folder, case), batch, case.family), batch) <= 1


@pytest.mark.parametrize("family", slow_unless({"bert", "modernbert"}.__contains__, FAMILIES))
def test_fewer_layers_narrower_layers_and_fewer_tokens_run_in_stock_classes(family, tmp_path):
    case, loaded, entry = loaded_case(family, tmp_path)
    config, params, _ = keep_layers(
        loaded.config,
        loaded.params,
        (0, 2),
        select_layers=entry.select_layers,
        next_layer_leaves=entry.next_layer_leaves,
    )
    config, params = prune_units(config, params, entry, "neurons", UnitBudget(0.5))
    kept = np.array([*range(6), *range(6, config.vocab_size, 2)])
    if config.pad_token_id not in kept:
        kept = np.sort([*kept, config.pad_token_id])
    config, params, _ = keep_tokens(config, params, entry.parameter_axes(leaf_names(params)), kept)
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 20)
    batch = make_batch(case)
    real = batch["attention_mask"] == 1
    batch["input_ids"] = np.where(real, batch["input_ids"] % 30 + 2, config.pad_token_id).astype(np.int32)
    compare(case, config, params, batch, tmp_path)


def test_fewer_heads_run_in_stock_nomic_bert(tmp_path):
    case, loaded, entry = loaded_case("nomic_bert", tmp_path)
    config, params = prune_units(loaded.config, loaded.params, entry, "heads", UnitBudget(0.5))
    assert (config.num_attention_heads, config.head_dim, config.head_size) == (2, 8, 8)
    compare(case, config, params, make_batch(case), tmp_path)


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_sizes_that_stock_classes_can_not_have_end_clearly(kind, tmp_path):
    case, loaded, entry = loaded_case("bert", tmp_path)
    budget = UnitBudget(0.5) if kind == "heads" else UnitBudget(counts=(8, 9, 10, 11))
    config, params = prune_units(loaded.config, loaded.params, entry, kind, budget, even=kind == "heads")
    folder = save_checkpoint(tmp_path / "own", config=config, task=TASK, params=params)
    again = load_checkpoint(folder, TASK)
    assert again.config.layer_intermediate == ((8, 9, 10, 11) if kind == "neurons" else ())
    with pytest.raises(OSError, match="no file named model.safetensors"):
        load_torch(folder, case)
