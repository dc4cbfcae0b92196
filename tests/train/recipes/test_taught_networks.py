"""Pre-training beside a teacher: what a student learns on raw text, and what is refused."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import (
    DistillationConfig,
    MeshConfig,
    ObjectiveConfig,
    OutputConfig,
    PretrainConfig,
    PretrainData,
    PretrainModel,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from flaxbert.core.sharding import build_mesh
from flaxbert.core.trees import flatten_parts
from flaxbert.errors import ConfigError
from flaxbert.model import load
from flaxbert.train.recipes import pretraining_setup
from flaxbert.train.recipes.pretrain import pretrain
from flaxbert.train.recipes.pretraining_networks import build_networks
from flaxbert.train.recipes.pretraining_setup import prepare_pretraining
from flaxbert.weights.tokenizer import tokenizer_alone
from tests.train.recipes.conftest import TINY
from tests.weights.tiny import CONFIG, write_tiny

JOINT = {"stages": "joint", "soft_weight": 5.0, "hard_weight": 2.0, "hidden_cosine_weight": 1.0, "temperature": 2.0}


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory):
    """A model of four layers."""
    model = PretrainModel(architecture={**TINY, "num_hidden_layers": 4}, precision="float32")
    networks = build_networks(model, ObjectiveConfig(), tokenizer_alone(corpus / "tokenizer"), 32, 0)
    return networks.main.save(tmp_path_factory.mktemp("taught") / "model")


@pytest.fixture(autouse=True)
def one_device(request, monkeypatch):
    """Runs on one of the virtual devices, which compiles in a fraction of the time, unless a test is about meshes."""
    if "mesh" not in request.node.name:
        monkeypatch.setattr(pretraining_setup, "build_mesh", lambda config: build_mesh(config, jax.devices()[:1]))


def make(
    teacher,
    corpus,
    folder,
    *,
    model=PretrainModel(precision="float32"),
    student=StudentConfig(every=2),
    weights=None,
    row_length=32,
    **train,
):
    settings = {"batch_size": 16, "num_steps": 24, "learning_rate": 3e-3, "evaluate_every": 0, "checkpoint_every": 8}
    return PretrainConfig(
        model=model,
        data=PretrainData(corpora=(str(corpus),), row_length=row_length, validation_rate=0.1),
        train=TrainConfig(**{**settings, **train}),
        output=OutputConfig(folder=str(folder), tensorboard=False, plots=False, progress="off"),
        teacher=TeacherConfig(path=str(teacher)),
        student=student,
        distillation=DistillationConfig(**(weights or JOINT)),
    )


def quiet(line: str) -> None:
    """Swallows the lines for the user."""


def agreement(teacher, student, texts) -> float:
    """Mean divergence of the student's words from the teacher's at all places."""
    own, theirs = (np.asarray(model.predict_logits(texts), np.float64) for model in (student, teacher))
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (theirs, own))
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


@pytest.mark.slow
def test_every_second_layer_learns_what_the_teacher_says_of_hidden_words(teacher, corpus, tmp_path):
    weights = {**JOINT, "hard_weight": 0.0}  # the words of the corpus are not those of a teacher that knows nothing
    result = pretrain(make(teacher, corpus, tmp_path / "run", weights=weights), say=quiet)
    assert result.reason == "finished"
    student, taught = load(tmp_path / "run" / "model", task="fill-mask"), load(teacher, task="fill-mask")
    assert student.config.num_hidden_layers == 2
    before = prepare_pretraining(make(teacher, corpus, tmp_path / "other"), quiet).networks.main
    for name in ("query", "output"):
        kept = before.params["encoder"]["layers"]["1"]["attention"][name]["kernel"]
        np.testing.assert_array_equal(kept, taught.params["encoder"]["layers"]["2"]["attention"][name]["kernel"])
    texts = ["First the [MASK] sees the dog.", "Then the dog [MASK] the hen."]
    assert agreement(taught, student, texts) < agreement(taught, before, texts)
    assert not [name for name in flatten_parts(student.params) if "teacher" in name or "projection" in name]


@pytest.mark.slow
def test_a_mesh_learns_the_same(teacher, corpus, tmp_path):
    config = make(teacher, corpus, tmp_path / "one", num_steps=2)
    losses = {}
    for name, mesh in (("one", MeshConfig(data=1)), ("many", MeshConfig(data=2, fsdp=2))):
        count = 1 if name == "one" else 4
        with pytest.MonkeyPatch.context() as patch:
            build = lambda _, mesh=mesh, count=count: build_mesh(mesh, jax.devices()[:count])
            patch.setattr(pretraining_setup, "build_mesh", build)
            output = dataclasses.replace(config.output, folder=str(tmp_path / name))
            losses[name] = pretrain(dataclasses.replace(config, mesh=mesh, output=output), say=quiet).after["loss"]
    np.testing.assert_allclose(losses["many"], losses["one"], rtol=1e-4)


INSIDE = {**JOINT, "embedding_weight": 1.0, "hidden_weight": 1.0, "query_relation_weight": 1.0, "relation_heads": 2}


@pytest.mark.slow
@pytest.mark.parametrize("init", ["sliced", "random"])
def test_a_narrow_student_is_compared_through_projections(teacher, corpus, tmp_path, init):
    student = StudentConfig(init=init, num_layers=2, hidden_size=16, num_attention_heads=2)
    schedule = {"temperature_schedule": "linear", "end_temperature": 1.0}
    config = make(teacher, corpus, tmp_path / "run", student=student, weights={**INSIDE, **schedule})
    result = pretrain(config, say=quiet)
    assert result.after["loss"] < result.before["loss"]
    assert load(tmp_path / "run" / "model", task="fill-mask").config.hidden_size == 16


@pytest.mark.slow
def test_texts_that_share_a_row_are_compared_as_if_alone(teacher, corpus, tmp_path):
    weights = {**JOINT, "attention_weight": 1.0, "value_relation_weight": 1.0}
    prepared = prepare_pretraining(make(teacher, corpus, tmp_path / "run", weights=weights, row_length=128), quiet)
    networks, rows = prepared.networks, {name: values[:1] for name, values in prepared.batches[0].items()}
    segments = rows["segment_ids"]
    assert segments.max() > 1
    params = {**networks.params, "teachers": {"0": networks.teachers[0].params}}
    params = jax.tree.map(jnp.asarray, params)

    def losses(batch):
        weighed = networks.loss.weigh(batch)
        return {
            name: float(value)
            for name, value in networks.loss.losses(networks.forward(params, weighed), weighed).items()
        }

    whole, count = losses(jax.tree.map(jnp.asarray, rows)), float(len(segments))
    alone, tokens = {"attention": 0.0, "value_relation": 0.0}, 0
    for row in range(len(segments)):
        for segment in range(1, segments[row].max() + 1):
            places = np.flatnonzero(segments[row] == segment)
            one = {name: rows[name][row : row + 1, places] for name in ("input_ids", "position_ids")}
            one["segment_ids"] = np.ones_like(one["input_ids"])
            one |= {name: rows[name][row : row + 1, :1] for name in ("masked_positions", "labels")}
            one["masked_positions"] = np.zeros_like(one["masked_positions"])
            one["example_weight"] = np.ones(1, np.float32)
            one = jax.tree.map(jnp.asarray, one)
            for name, value in losses(one).items():
                if name in alone:
                    alone[name] += value * len(places)
            tokens += len(places)
    for name, value in alone.items():
        np.testing.assert_allclose(whole[name] / count, value / tokens, rtol=1e-4)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit_and_refuses_another_teacher(teacher, corpus, tmp_path):
    whole = pretrain(make(teacher, corpus, tmp_path / "whole", num_steps=8), say=quiet)
    part = make(teacher, corpus, tmp_path / "part", num_steps=8, checkpoint_every=4)
    pretrain(part, say=quiet)
    for folder in (tmp_path / "part" / "checkpoints").iterdir():
        if folder.name == "8":
            shutil.rmtree(folder)
    again = pretrain(part, say=quiet)
    left, right = flatten_parts(whole.model.params), flatten_parts(again.model.params)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    other = dataclasses.replace(part, distillation=DistillationConfig(**{**JOINT, "temperature": 3.0}))
    with pytest.raises(ConfigError, match=r"distillation\.temperature"):
        pretrain(other, say=quiet)


REFUSED = {
    "all terms are learned at once": {"weights": {"hidden_weight": 1.0}},
    "first token of a text": {"weights": {**JOINT, "patient_weight": 1.0}},
    "made of its teacher": {"model": PretrainModel(architecture=TINY)},
    "has the layers 0 to 3": {"student": StudentConfig(layers=(0, 7))},
    "relation heads do not divide": {"weights": {**JOINT, "key_relation_weight": 1.0, "relation_heads": 3}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused(teacher, corpus, tmp_path, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(make(teacher, corpus, tmp_path / "run", **REFUSED[message]), say=quiet)


def test_teachers_without_words_or_with_other_tokens_are_refused(teacher, corpus, tmp_path):
    other = write_tiny(tmp_path / "other", task="fill-mask", config=CONFIG)
    with pytest.raises(ConfigError, match="another tokenizer than that of the teacher"):
        pretrain(make(other, corpus, tmp_path / "a"), say=quiet)
    headless = load(teacher, task="feature-extraction")
    headless.replace(tokenizer=tokenizer_alone(corpus / "tokenizer")).save(tmp_path / "headless")
    with pytest.raises(ConfigError, match="no head that fills in words"):
        pretrain(make(tmp_path / "headless", corpus, tmp_path / "b"), say=quiet)
    with pytest.raises(ConfigError, match=r"do not go with teacher\.path"):
        PretrainConfig(teacher=TeacherConfig(path="model"), objective=ObjectiveConfig(replaced_tokens=True))
    with pytest.raises(ConfigError, match=r"masked anew"):
        PretrainConfig(teacher=TeacherConfig(path="model", cache="folder"))
    with pytest.raises(ConfigError, match=r"teacher\.path is empty"):
        PretrainConfig(student=StudentConfig(every=2))
