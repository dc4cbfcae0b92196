"""Fine-tuning that prunes: masks follow the schedule, runs go on bit by bit, and what comes out is sparse or smaller."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import DataConfig, MeshConfig, ModelSource, OutputConfig, PruneConfig, RunConfig, TrainConfig
from flaxbert.core.arrays import SparseArray
from flaxbert.core.trees import flatten_names, flatten_parts
from flaxbert.errors import ConfigError, RuleError, ShapeError
from flaxbert.model import load
from flaxbert.train.recipes.finetune import finetune
from tests.train.recipes.stopped_runs import TEXTS, StopAt, write_examples
from tests.weights.tiny import write_tiny

UP = "encoder.layers.0.feed_forward.up.kernel"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "start")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("data"))


def build(model, data, folder, prune=PruneConfig(), *, mesh=MeshConfig(), scan_layers=False, **train):
    settings = {
        "batch_size": 16,
        "num_steps": 10,
        "learning_rate": 1e-2,
        "log_every": 1,
        "checkpoint_every": 2,
        **train,
    }
    return RunConfig(
        model=ModelSource(path=str(model), dropout_rate=0.1, scan_layers=scan_layers),
        data=DataConfig(train=str(data), max_length=8, length_buckets=(8,), validation_rate=0.25),
        train=TrainConfig(**settings),
        mesh=mesh,
        output=OutputConfig(folder=str(folder), tensorboard=False, plots=False, progress="off"),
        prune=prune,
    )


def quietly(config, *callbacks):
    lines = []
    return finetune(config, say=lines.append, extra_callbacks=callbacks), "\n".join(lines)


def kernels(result):
    found = flatten_names(result.model.params).items()
    return {name: leaf for name, leaf in found if name.startswith("encoder") and name.endswith("kernel")}


METHODS = {
    "magnitude": PruneConfig("magnitude", 0.75),
    "global magnitude": PruneConfig("magnitude", 0.75, scope="global"),
    "2:4": PruneConfig("magnitude", pattern="2:4"),
    "blocks": PruneConfig("magnitude", 0.5, block="4x2"),
    "movement": PruneConfig("movement", 0.75),
    "movement of blocks": PruneConfig("movement", 0.5, block="4x4", every=1),
}
SHARES = {
    "magnitude": 0.75,
    "global magnitude": 0.75,
    "2:4": 0.5,
    "blocks": 0.5,
    "movement": 0.75,
    "movement of blocks": 0.5,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_run_ends_with_the_share_it_was_told_and_its_folder_holds_the_zeros(name, model, data, tmp_path):
    result, said = quietly(build(model, data, tmp_path / "run", METHODS[name]))
    assert result.step == 10
    assert "Pruned: " in said
    assert ("can destroy a model" in said) == ("movement" in name)
    leaves = kernels(result)
    assert all(isinstance(leaf, SparseArray) for leaf in leaves.values())
    masks = [np.asarray(leaf.mask) for leaf in leaves.values()]
    zeros = sum(int((~mask).sum()) for mask in masks) / sum(mask.size for mask in masks)
    if "block" not in name:  # of which a matrix of 12 by 12 has no whole half
        assert abs(zeros - SHARES[name]) < 0.01
    if "global" not in name:
        assert all(abs(np.mean(~mask) - SHARES[name]) < 0.07 for mask in masks)
    assert all((np.asarray(leaf.values)[~np.asarray(leaf.mask)] == 0).all() for leaf in leaves.values())
    again = flatten_names(load(result.folder / "model").params)
    assert all(np.array_equal(again[leaf].mask, leaves[leaf].mask) for leaf in leaves)
    logits = load(result.folder / "model").predict_logits(list(TEXTS))
    np.testing.assert_allclose(result.model.predict_logits(list(TEXTS)), logits, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["magnitude", "movement", "soft"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name, model, data, tmp_path):
    soft = PruneConfig("soft_movement", threshold=0.4, penalty=10.0, score_factor=3.0)
    prune = soft if name == "soft" else METHODS[name]
    whole, _ = quietly(build(model, data, tmp_path / "whole", prune))
    folder = tmp_path / "parts"
    stopped, _ = quietly(build(model, data, folder, prune), StopAt(5))
    assert stopped.reason == "preempted"
    resumed, said = quietly(build(model, data, folder, prune))
    assert "Resuming at step 5" in said
    expected, got = flatten_parts(whole.model.params), flatten_parts(resumed.model.params)
    assert expected.keys() == got.keys()
    assert all(np.array_equal(expected[part], got[part]) for part in expected)
    with pytest.raises(ConfigError, match=r"prune\.rate.*refused"):
        quietly(build(model, data, folder, PruneConfig(prune.method, 0.9)))


@pytest.mark.parametrize("method", ["magnitude", "movement"])
@pytest.mark.slow
def test_heads_and_neurons_that_training_prunes_are_taken_out(method, model, data, tmp_path):
    prune = PruneConfig(method, 0.5, block="units", shrink=True, even=method == "movement")
    result, said = quietly(build(model, data, tmp_path / "run", prune))
    config = result.model.config
    assert f"Prunes heads and neurons by {method}, 50%: from step 1 to step 7, every 1." in said
    assert "can destroy a model" not in said
    assert "neurons are left" in said
    assert config.intermediate_size == 10
    assert config.num_attention_heads == 1  # round(0.5 * 3) of 3 go
    assert result.model.params["encoder"]["layers"]["0"]["attention"]["query"]["kernel"].shape == (12, 4)
    again = load(result.folder / "model")
    assert again.config.intermediate_size == 10
    np.testing.assert_allclose(again.predict_logits(list(TEXTS)), result.model.predict_logits(list(TEXTS)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "scan"), [(MeshConfig(fsdp=2), False), (MeshConfig(), True)])
def test_meshes_and_scanned_layers_prune_the_same(mesh, scan, model, data, tmp_path):
    prune = PruneConfig("movement", 0.5)
    plain, _ = quietly(build(model, data, tmp_path / "plain", prune, num_steps=6))
    other, _ = quietly(build(model, data, tmp_path / "other", prune, num_steps=6, mesh=mesh, scan_layers=scan))
    expected = flatten_names(load(plain.folder / "model").params)
    got = flatten_names(load(other.folder / "model").params)
    same = [np.mean(np.asarray(expected[name].mask) == np.asarray(got[name].mask)) for name in kernels(plain)]
    assert min(same) > 0.95  # scores that are as good as equal may change places by rounding


@pytest.mark.slow
def test_a_pruned_model_keeps_its_zeros_through_further_training(model, data, tmp_path):
    from flaxbert.cli.main import main

    assert main(["prune", str(model), str(tmp_path / "pruned"), "--pattern", "2:4"]) == 0
    result, _ = quietly(build(tmp_path / "pruned", data, tmp_path / "run", num_steps=4))
    before, after = flatten_names(load(tmp_path / "pruned").params), flatten_names(result.model.params)
    mask = np.asarray(before[UP].mask)
    assert np.array_equal(np.asarray(after[UP].mask), mask)
    dense = np.asarray(jnp.asarray(after[UP].materialize()))
    assert (dense[~mask] == 0).all()
    assert np.abs(dense - np.asarray(before[UP].materialize()))[mask].max() > 1e-3


@pytest.mark.parametrize(
    ("prune", "train", "error", "message"),
    [
        (PruneConfig("magnitude"), {"early_stopping_patience": 2}, ConfigError, "must reach the end of its schedule"),
        (PruneConfig("movement", keep=("encoder.layer.0.*",)), {}, RuleError, "prune.keep rule.*matches no leaf"),
        (PruneConfig("movement", keep=(r".*",)), {}, ConfigError, "no matrix is left to prune"),
        (PruneConfig("magnitude", pattern="2:5"), {}, ShapeError, "groups of 5"),
        (PruneConfig("movement", block="5x5"), {}, ShapeError, "blocks of 5x5"),
    ],
)
def test_runs_that_can_not_prune_so_are_refused(prune, train, error, message, model, data, tmp_path):
    with pytest.raises(error, match=message):
        quietly(build(model, data, tmp_path / "run", prune, **train))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, "prune.rate is 1.0"),
        ({"rate": 0.0}, "prune.rate is 0.0"),
        ({"begin_rate": 0.8}, "rising shares"),
        ({"threshold": 0.6}, r"\(0, 0.5\]"),
        ({"method": "movement", "pattern": "2:4"}, "goes with prune.method magnitude"),
        ({"pattern": "2:4", "block": "4x4"}, "group by group"),
        ({"pattern": "4:2"}, "must be N:M"),
        ({"block": "4"}, "units or HEIGHTxWIDTH"),
        ({"block": "0x4"}, "units or HEIGHTxWIDTH"),
        ({"every": -1}, "prune.every"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        PruneConfig(**options)


@pytest.mark.slow
def test_a_student_is_pruned_while_it_learns_from_its_teacher(model, data, tmp_path):
    from flaxbert.config import DistillationConfig, DistillConfig, TeacherConfig
    from flaxbert.train.recipes.distill import distill

    taught, _ = quietly(build(model, data, tmp_path / "teacher", num_steps=40))
    run = build(
        taught.folder / "model", data, tmp_path / "run", PruneConfig("movement", 0.5, block="units", shrink=True)
    )
    fields = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    teacher = TeacherConfig(path=str(taught.folder / "model"))
    lines = []
    config = DistillConfig(**fields, teacher=teacher, distillation=DistillationConfig())
    result = distill(config, say=lines.append)
    assert "neurons are left" in "\n".join(lines)
    assert result.model.config.intermediate_size == 10
    again = load(result.folder / "model")
    np.testing.assert_allclose(again.predict_logits(list(TEXTS)), result.model.predict_logits(list(TEXTS)), atol=1e-5)
