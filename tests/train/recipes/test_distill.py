"""Whole distillations of tiny models on the virtual devices."""

import dataclasses
import json
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from flaxbert.config import (
    DataConfig,
    DistillationConfig,
    DistillConfig,
    MeshConfig,
    ModelSource,
    OtherTeacher,
    OutputConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from flaxbert.core.sharding import build_mesh
from flaxbert.core.trees import flatten_parts, map_leaves
from flaxbert.errors import ConfigError, DataError
from flaxbert.model import load
from flaxbert.train.callbacks import CallbackBase
from flaxbert.train.recipes import setup
from flaxbert.train.recipes.distill import distill
from flaxbert.transforms import quantize
from tests.weights.tiny import CONFIG, WORDS, write_tiny

TEXTS = ("a fine film", "the film was bad", "fine films", "bad .", "the fine", "a bad film .", "was", "films bad the")
LABELS = ("good", "bad", "fair", "bad", "good", "bad", "fair", "good")
WIDE = CONFIG.replace(num_hidden_layers=3, hidden_size=16, num_attention_heads=4, initializer_range=0.2)

SAME = 1e-4
"""Absolute, for logits of size 5: the teacher's outputs in another program, and what follows of them in a few steps."""


class StopAt(CallbackBase):
    """Sends SIGTERM to this process, after the given step of the run that is told so for the given time."""

    def __init__(self, step: int, time: int = 1) -> None:
        self.step, self.left = step, time

    def on_log(self, step, metrics) -> None:
        self.left -= step == self.step
        if step == self.step and not self.left:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def one_device(request, monkeypatch):
    """Runs on one of the virtual devices, which compiles in a fraction of the time, unless a test is about meshes."""
    if "mesh" not in request.node.name:
        build = lambda config: build_mesh(config, jax.devices()[:1])
        monkeypatch.setattr(setup, "build_mesh", build)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("teacher")
    model = load(write_tiny(folder / "drawn", config=WIDE))
    smaller = map_leaves(
        lambda name, leaf: 0.3 * leaf if leaf.ndim > 1 and "classifier" not in name else leaf, model.params
    )
    return model.replace(params=smaller).save(folder / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    file = tmp_path_factory.mktemp("data") / "train.tsv"
    rows = [f"{TEXTS[i % 8]}\t{LABELS[i % 8]}" for i in range(32)]
    file.write_text("text\tlabel\n" + "\n".join(rows) + "\n", "utf-8")
    return file


INSIDE = {"embedding_weight": 1.0, "hidden_weight": 1.0, "attention_weight": 0.1}
SLICED = StudentConfig(init="sliced", num_layers=2, hidden_size=8, intermediate_size=10)


def build(
    teacher,
    data,
    folder,
    *,
    student=SLICED,
    model=ModelSource(),
    source=None,
    weights=None,
    steps=6,
    dropout_rate=0.0,
    **train,
):
    settings = {"batch_size": 8, "num_steps": steps, "learning_rate": 3e-3, "log_every": 1, "checkpoint_every": 2}
    options = TrainConfig(**{**settings, **train})
    return DistillConfig(
        teacher=source or TeacherConfig(path=str(teacher)),
        student=student,
        distillation=DistillationConfig(**(INSIDE if weights is None else weights)),
        model=dataclasses.replace(model, dropout_rate=dropout_rate),
        data=DataConfig(train=str(data), max_length=8, length_buckets=(8,), validation_rate=0.25),
        intermediate=options,
        train=options,
        output=OutputConfig(folder=str(folder), tensorboard=False, plots=False, progress="off"),
    )


def quiet(line: str) -> None:
    """Swallows the lines for the user."""


def assert_same(first, second) -> None:
    left, right = flatten_parts(first.params), flatten_parts(second.params)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def divergence(teacher, student) -> float:
    """How far the student's probabilities are from the teacher's on all texts."""
    own, theirs = (np.asarray(model.predict_logits(TEXTS), np.float64) for model in (student, teacher))
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (theirs, own))
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("init", ["sliced", "random"])
def test_two_stages_teach_a_narrow_student(teacher, data, tmp_path, init):
    weights = {**INSIDE, "attention_weight": 0.1 if init == "sliced" else 0.0, "query_relation_weight": 1.0}
    student = dataclasses.replace(SLICED, init=init, num_attention_heads=2)
    lines: list[str] = []
    config = build(teacher, data, tmp_path / "run", student=student, weights=weights, steps=24)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=60, learning_rate=1e-2))
    result = distill(config, say=lines.append)
    assert result.reason == "finished"
    stored = json.loads((tmp_path / "run" / "intermediate" / "model" / "distillation.json").read_text())
    assert stored["history"][-1]["distillation_loss"] < stored["before"]["distillation_loss"]
    taught = load(teacher)
    before = divergence(taught, load(tmp_path / "run" / "student"))
    assert divergence(taught, result.model) < before
    loaded = load(tmp_path / "run" / "model")
    assert loaded.config.hidden_size == 8
    assert loaded.config.label_names == WIDE.labels
    assert_same(loaded, result.model)
    assert not [name for name in flatten_parts(loaded.params) if "projection" in name or "teacher" in name]
    assert any("of the teacher's accuracy" in line for line in lines)
    assert "distilled from" in (tmp_path / "run" / "model" / "README.md").read_text()
    report = json.loads((tmp_path / "run" / "distillation.json").read_text())
    assert report["num_parameters"]["student"] < report["num_parameters"]["teacher"]
    assert report["teacher"]["accuracy"] == result.teacher["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("time", [1, 2], ids=["first stage", "last stage"])
def test_a_stopped_run_resumes_bit_for_bit_in_either_stage(teacher, data, tmp_path, time):
    whole = distill(build(teacher, data, tmp_path / "whole", dropout_rate=0.1), say=quiet)
    stopped = distill(
        build(teacher, data, tmp_path / "parts", dropout_rate=0.1), say=quiet, extra_callbacks=[StopAt(3, time)]
    )
    assert stopped.reason == "preempted"
    assert (tmp_path / "parts" / "intermediate" / "model").is_dir() == (time == 2)
    resumed = distill(build(teacher, data, tmp_path / "parts", dropout_rate=0.1, resume="must"), say=quiet)
    assert resumed.reason == "finished"
    assert_same(whole.model, resumed.model)
    assert whole.history == resumed.history


@pytest.mark.slow
def test_all_terms_at_once_with_whole_layers_of_the_teacher(teacher, data, tmp_path):
    weights = {
        **INSIDE, "stages": "joint", "hard_weight": 0.5, "logit_weight": 0.1, "hidden_cosine_weight": 1.0, "patient_weight": 1.0,
        "attention_relation_weight": 1.0, "query_relation_weight": 1.0, "key_relation_weight": 1.0, "value_relation_weight": 1.0,
        "relation_heads": 8, "temperature": 4.0, "temperature_schedule": "cosine", "end_temperature": 1.0,
    }  # fmt: skip
    student = StudentConfig(every=2)
    result = distill(build(teacher, data, tmp_path / "run", student=student, weights=weights, steps=16), say=quiet)
    assert result.model.config.num_hidden_layers == 2
    assert not (tmp_path / "run" / "intermediate").exists()
    start = load(tmp_path / "run" / "student")
    for own, theirs in ((0, 0), (1, 2)):
        np.testing.assert_array_equal(
            start.params["encoder"]["layers"][str(own)]["attention"]["query"]["kernel"],
            load(teacher).params["encoder"]["layers"][str(theirs)]["attention"]["query"]["kernel"],
        )
    assert divergence(load(teacher), result.model) < divergence(load(teacher), start)


@pytest.mark.slow
def test_checkpoints_hold_no_teacher(teacher, data, tmp_path):
    distill(build(teacher, data, tmp_path / "run", steps=2), say=quiet)
    for folder in ("intermediate/checkpoints", "checkpoints"):
        version = next(path for path in (tmp_path / "run" / folder).iterdir() if path.name.isdigit())
        leaves = json.loads((version / "version.json").read_text())["leaves"]
        assert not [name for name in leaves if "teachers" in name]
        assert any("projections" in name for name in leaves) == folder.startswith("intermediate")


@pytest.mark.slow
def test_stored_outputs_teach_the_same_and_are_used_again(teacher, data, tmp_path):
    weights = {"soft_weight": 1.0, "temperature": 2.0}
    source = TeacherConfig(path=str(teacher), cache=str(tmp_path / "cache"))
    running = distill(build(teacher, data, tmp_path / "a", weights=weights), say=quiet)
    lines: list[str] = []
    stored = distill(build(teacher, data, tmp_path / "b", weights=weights, source=source), say=lines.append)
    assert any("computed once" in line for line in lines)
    for name, leaf in flatten_parts(stored.model.params).items():
        if not name.endswith("key.bias"):  # whose gradient is 0, so that Adam follows the rounding of sums alone
            np.testing.assert_allclose(leaf, flatten_parts(running.model.params)[name], atol=SAME, err_msg=name)
    again = distill(build(teacher, data, tmp_path / "c", weights=weights, source=source), say=lines.append)
    assert any("read from" in line for line in lines)
    assert_same(stored.model, again.model)


@pytest.mark.slow
def test_stored_outputs_of_others_are_refused_and_damage_is_found(teacher, data, tmp_path):
    cache, weights = tmp_path / "cache", {"soft_weight": 1.0}
    source = TeacherConfig(path=str(teacher), cache=str(cache))
    distill(build(teacher, data, tmp_path / "a", weights=weights, source=source, steps=1), say=quiet)
    other = write_tiny(tmp_path / "other", config=WIDE.replace(num_hidden_layers=2))
    changed = dataclasses.replace(source, path=str(other))
    with pytest.raises(ConfigError, match="outputs of other teachers"):
        distill(build(other, data, tmp_path / "b", weights=weights, source=changed, steps=1), say=quiet)
    longer = tmp_path / "longer.tsv"
    longer.write_text(data.read_text() + "a film\tfair\n")
    with pytest.raises(ConfigError, match="other training examples"):
        distill(build(teacher, longer, tmp_path / "c", weights=weights, source=source, steps=1), say=quiet)
    with (cache / "teacher_logits_0.npy").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    with pytest.raises(DataError, match=r"teacher_logits_0\.npy: content differs"):
        distill(build(teacher, data, tmp_path / "d", weights=weights, source=source, steps=1), say=quiet)


@pytest.mark.slow
def test_the_highest_scores_alone_teach_too(teacher, data, tmp_path):
    source = TeacherConfig(path=str(teacher), cache=str(tmp_path / "cache"), cache_top_k=2)
    config = build(teacher, data, tmp_path / "run", weights={"soft_weight": 1.0}, source=source, steps=16)
    result = distill(config, say=quiet)
    assert np.load(tmp_path / "cache" / "teacher_ids_0.npy").shape[1] == 2
    assert divergence(load(teacher), result.model) < divergence(load(teacher), load(tmp_path / "run" / "student"))


@pytest.mark.slow
def test_several_teachers_one_of_them_quantized_and_one_with_other_tokens(teacher, data, tmp_path):
    model = load(teacher)
    params, _ = quantize(model.params)
    model.replace(params=params).save(tmp_path / "small")
    other = write_tiny(tmp_path / "other", config=WIDE)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(WORDS[5:])]
    (other / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    others = (OtherTeacher(str(tmp_path / "small"), 2.0), OtherTeacher(str(other)))
    source = TeacherConfig(path=str(teacher), others=others)
    config = build(teacher, data, tmp_path / "run", weights={"soft_weight": 1.0}, source=source, steps=8)
    assert distill(config, say=quiet).reason == "finished"
    with pytest.raises(
        ConfigError, match=r"tokenizers of the teacher .* differ .* 'embedding' compares|the term embedding"
    ):
        distill(build(teacher, data, tmp_path / "inside", source=source, steps=1), say=quiet)


@pytest.mark.slow
def test_a_student_of_another_family_learns_from_outputs(teacher, data, tmp_path):
    made = write_tiny(tmp_path / "student", config=CONFIG.replace(family="electra", hidden_size=12))
    config = build(
        teacher, data, tmp_path / "run", model=ModelSource(path=str(made)), weights={"soft_weight": 1.0}, steps=2
    )
    result = distill(config, say=quiet)
    assert result.model.config.family == "electra"
    assert not (tmp_path / "run" / "student").exists()


ERRORS = {
    "teacher.path is empty": {"source": TeacherConfig()},
    "layer 5, but the teacher has the layers 0 to 2": {"student": StudentConfig(layers=(0, 5))},
    "teacher has 3 layers to make": {"student": StudentConfig(num_layers=4)},
    "teacher_layers keeps": {"student": StudentConfig(hidden_size=8)},
    "more than the teacher's 16": {"student": dataclasses.replace(SLICED, hidden_size=32)},
    "may not be wider": {"student": dataclasses.replace(SLICED, num_attention_heads=1)},
    "layer_map names 1 layers, but the student has 2": {"weights": {**INSIDE, "layer_map": (1,)}},
    "layer_map names layer 3": {"weights": {**INSIDE, "layer_map": (1, 3)}},
    "head by head": {"student": dataclasses.replace(SLICED, init="random", num_attention_heads=2)},
    "relation heads do not divide": {"weights": {"query_relation_weight": 1.0, "relation_heads": 3}},
    "relation_teacher_layer is 3": {"weights": {"value_relation_weight": 1.0, "relation_teacher_layer": 3}},
    "attention_relation_weight needs as many heads": {"weights": {"attention_relation_weight": 1.0}},
    "looks inside of it": {"weights": {**INSIDE, "stages": "joint"}, "cache": True},
    "keeps the highest probabilities": {"weights": {"temperature": 2.0}, "top_k": 2, "cache": True},
}


@pytest.mark.parametrize("message", ERRORS)
def test_what_does_not_fit_is_refused(teacher, data, tmp_path, message):
    options = dict(ERRORS[message])
    if options.pop("cache", False):
        top_k = options.pop("top_k", 0)
        options["source"] = TeacherConfig(path=str(teacher), cache=str(tmp_path / "cache"), cache_top_k=top_k)
    with pytest.raises(ConfigError, match=message):
        distill(build(teacher, data, tmp_path / "run", **options), say=quiet)
    assert not (tmp_path / "run" / "model").exists()


def test_other_tasks_labels_and_quantized_students_are_refused(teacher, data, tmp_path):
    headless = write_tiny(
        tmp_path / "headless", task="feature-extraction", config=WIDE.replace(labels=(), num_labels=2)
    )
    with pytest.raises(ConfigError, match="no labelled task to distil"):
        distill(build(headless, data, tmp_path / "a"), say=quiet)
    fewer = write_tiny(tmp_path / "fewer", config=WIDE.replace(labels=("bad", "good"), num_labels=2))
    with pytest.raises(DataError, match="fair"):
        distill(build(fewer, data, tmp_path / "b"), say=quiet)
    turned = write_tiny(tmp_path / "turned", config=WIDE.replace(labels=("good", "fair", "bad")))
    config = build(turned, data, tmp_path / "c")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, labels=("bad", "fair", "good")))
    with pytest.raises(ConfigError, match="in this order"):
        distill(config, say=quiet)
    model = load(teacher)
    params, _ = quantize(model.params)
    model.replace(params=params).save(tmp_path / "small")
    with pytest.raises(ConfigError, match="codes can not be trained"):
        distill(build(teacher, data, tmp_path / "d", model=ModelSource(path=str(tmp_path / "small"))), say=quiet)
    with pytest.raises(ConfigError, match="but the student one for"):
        distill(build(teacher, data, tmp_path / "e", model=ModelSource(task="next-sentence-prediction")), say=quiet)


@pytest.mark.slow
def test_settings_of_a_run_that_began_may_not_change(teacher, data, tmp_path):
    distill(build(teacher, data, tmp_path / "run", steps=2), say=quiet)
    for changed in (
        build(teacher, data, tmp_path / "run", student=dataclasses.replace(SLICED, num_layers=3), steps=2),
        build(teacher, data, tmp_path / "run", weights={**INSIDE, "hidden_weight": 2.0}, steps=2),
    ):
        with pytest.raises(ConfigError, match=r"(student.num_layers|distillation.hidden_weight): .*refused"):
            distill(changed, say=quiet)
    with pytest.raises(ConfigError, match="'never'"):
        distill(build(teacher, data, tmp_path / "run", steps=2, resume="never"), say=quiet)


@pytest.mark.slow
def test_a_mesh_teaches_the_same_in_both_stages(teacher, data, tmp_path, monkeypatch):
    logits = {}
    for name, mesh, count in (("one", MeshConfig(data=1), 1), ("many", MeshConfig(data=2, fsdp=2), 4)):
        build_on = lambda config, count=count: build_mesh(config, jax.devices()[:count])
        monkeypatch.setattr(setup, "build_mesh", build_on)
        config = dataclasses.replace(build(teacher, data, tmp_path / name, steps=3), mesh=mesh)
        logits[name] = distill(config, say=quiet).model.predict_logits(TEXTS)
    np.testing.assert_allclose(
        logits["many"], logits["one"], atol=2e-3
    )  # three steps of Adam follow the rounding of sums over devices
