"""Runs without their data: shapes as the real ones, clear errors."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from flaxbert.config import (
    DataConfig,
    MaskingConfig,
    MeshConfig,
    ModelSource,
    ObjectiveConfig,
    PretrainConfig,
    PretrainData,
    PretrainModel,
    PretrainPhase,
    RunConfig,
    TrainConfig,
)
from flaxbert.core.sharding import build_mesh
from flaxbert.core.trees import count_parameters, leaf_names
from flaxbert.errors import ConfigError
from flaxbert.families import FAMILIES
from flaxbert.families.graph import abstract_params
from flaxbert.planning.workloads import VOCABULARY_SIZES, finetuning_workload, pretraining_workloads
from flaxbert.train.flops import NetworkWork
from tests.weights.tiny import write_tiny


def test_a_new_model_has_the_parameters_of_the_published_one_and_none_is_made():
    workload = pretraining_workloads(PretrainConfig(PretrainModel(size="large")))[0]
    job = workload.job(build_mesh(MeshConfig(), jax.devices()[:1]), 32)
    leaves = jax.tree.leaves(job.params)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    # BERT-large's 335 million, its pooler left out, its masked language head put in.
    assert 334e6 < count_parameters(job.params) < 337e6
    assert set(job.leaf_axes) == set(leaf_names(job.params))
    assert workload.model.vocab_size == VOCABULARY_SIZES["bert"]


def test_every_family_has_a_vocabulary():
    assert set(VOCABULARY_SIZES) == set(FAMILIES)


def test_rows_have_the_entries_that_training_makes():
    config = PretrainConfig(
        PretrainModel(size="tiny"),
        PretrainData(row_length=64, max_pieces=3),
        MaskingConfig(rate=0.3),
        ObjectiveConfig(pairs="next_sentence"),
    )
    job = pretraining_workloads(config)[0].job(build_mesh(MeshConfig()), 8)
    shapes = {name: array.shape for name, array in job.example.items()}
    assert shapes == {
        **dict.fromkeys(("input_ids", "segment_ids", "position_ids", "token_type_ids"), (1, 64)),
        **dict.fromkeys(("masked_positions", "labels"), (1, 24)),
        **dict.fromkeys(("first_positions", "pair_labels"), (1, 3)),
        "example_weight": (1,),
    }


def test_flops_are_those_of_the_model_with_the_head_on_hidden_words_only():
    workload = pretraining_workloads(PretrainConfig(PretrainModel(size="base"), PretrainData(row_length=128)))[0]
    work = NetworkWork(workload.model, "fill-mask")
    assert workload.flops_per_row == work.training_flops(np.array([128]), 0.15 * 128)
    assert workload.flops_per_row / 128 == pytest.approx(0.545e9, rel=0.01)


def test_generator_and_discriminator_count_both():
    objective = ObjectiveConfig(replaced_tokens=True)
    config = PretrainConfig(PretrainModel(family="electra", size="small"), objective=objective)
    workload = pretraining_workloads(config, vocab_size=1000)[0]
    alone = NetworkWork(workload.model, "feature-extraction").training_flops(np.array([128]))
    assert 1.05 * alone < workload.flops_per_row < 1.6 * alone
    names = leaf_names(workload.job(build_mesh(MeshConfig()), 8).params)
    assert {name.split(".")[0] for name in names} == {"generator", "discriminator"}


def test_a_model_to_go_on_from_gives_its_size(tmp_path):
    folder = write_tiny(tmp_path / "model")
    workload = pretraining_workloads(PretrainConfig(PretrainModel(path=str(folder)), PretrainData(row_length=16)))[0]
    stored = json.loads((folder / "config.json").read_text("utf-8"))
    assert workload.model.hidden_size == stored["hidden_size"]
    with pytest.raises(ConfigError, match="positions"):
        pretraining_workloads(PretrainConfig(PretrainModel(path=str(folder)), PretrainData(row_length=4096)))[0]


@pytest.mark.parametrize(
    "task", ["sequence-classification", "token-classification", "question-answering", "multiple-choice"]
)
def test_fine_tuning_takes_size_and_length_from_model_and_data(tmp_path, task):
    folder = write_tiny(tmp_path / "model")
    config = RunConfig(ModelSource(path=str(folder), task=task), DataConfig(max_length=16))
    workload = finetuning_workload(config)
    job = workload.job(build_mesh(MeshConfig()), 8)
    assert job.example["input_ids"].shape[-1] == workload.length == 16
    assert leaf_names(job.params) == leaf_names(abstract_params(workload.model, task))
    assert workload.rows_per_example == (4 if task == "multiple-choice" else 1)


@pytest.mark.parametrize(
    ("path", "expected"), [("", "names no model"), ("google-bert/bert-base-uncased", "hf download")]
)
def test_a_run_without_a_model_at_hand_says_what_to_do(path, expected):
    with pytest.raises(ConfigError, match=expected):
        finetuning_workload(RunConfig(ModelSource(path=path)))


def test_the_batch_of_the_run_is_the_default():
    config = PretrainConfig(PretrainModel(size="tiny"), train=TrainConfig(batch_size="auto", target_batch_size=48))
    assert pretraining_workloads(config)[0].batch_size == 48


def test_phases_have_workloads_of_their_own():
    phases = (
        PretrainPhase(share=9, row_length=128, batch_size=64),
        PretrainPhase(share=1, row_length=256, batch_size=32),
    )
    config = PretrainConfig(
        PretrainModel(size="tiny"), PretrainData(phases=phases), train=TrainConfig(batch_size=8, num_steps=500)
    )
    short, long = pretraining_workloads(config)
    assert [(part.length, part.batch_size, part.num_steps) for part in (short, long)] == [(128, 64, 450), (256, 32, 50)]
    assert 2 < long.flops_per_row / short.flops_per_row < 3
    assert long.job(build_mesh(MeshConfig()), 8).example["input_ids"].shape == (1, 256)
    (alone,) = pretraining_workloads(PretrainConfig(PretrainModel(size="tiny")))
    assert alone.num_steps == 0
    with pytest.raises(ConfigError, match="positions for 512"):
        pretraining_workloads(dataclasses.replace(config, data=PretrainData(phases=(PretrainPhase(row_length=1024),))))
