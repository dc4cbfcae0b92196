"""Whole plans of a tiny model on 8 virtual devices: memory, collectives, what does not fit, and no gathered activations."""

import dataclasses
import importlib.util
import json

import pytest

from flaxbert.cli.main import main
from flaxbert.config import MeshConfig, PretrainConfig, PretrainData, PretrainModel, TrainConfig
from flaxbert.errors import ConfigError, MeshError
from flaxbert.planning import planner as planner_module
from flaxbert.planning.chips import CHIPS
from flaxbert.planning.command import PlanRequest, make_plans
from flaxbert.planning.planner import Planner
from flaxbert.planning.report import plan_document, plan_text, ranking_text, run_text
from flaxbert.planning.topology import parse_topology
from flaxbert.planning.workloads import pretraining_workloads
from flaxbert.train.memory import BatchPlan
from tests.train.tiny_training import QUICK

ARCHITECTURE = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CONFIG = PretrainConfig(
    PretrainModel(size="tiny", architecture=ARCHITECTURE, precision="float32"),
    PretrainData(row_length=24),
    train=TrainConfig(batch_size=32),
)
MESHES = [MeshConfig(), MeshConfig(fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)]


def make_planner(chip=CHIPS["h200"], config=CONFIG, say=lambda line: None):
    return Planner(pretraining_workloads(config, vocab_size=96)[0], parse_topology("h200:8"), chip, say, QUICK)


@pytest.fixture(scope="module")
def planner():
    return make_planner()


@pytest.fixture(scope="module")
def plans(planner):
    return [planner.plan(mesh, BatchPlan(32, 32), find_largest=False) for mesh in MESHES]


@pytest.mark.slow
def test_no_mesh_gathers_activations_that_the_design_did_not_ask_for(plans):
    for plan in plans:
        assert plan.gathered_activations == (), plan.mesh
        assert plan.estimate.collectives


def test_each_mesh_has_the_collectives_of_its_design(plans):
    data, fsdp, mixed = ({kind for kind, _ in plan.estimate.collectives} for plan in plans)
    assert data == {"all-reduce"}
    assert "all-gather" in fsdp
    assert "all-reduce" in mixed


def test_gradients_are_added_up_once(plans):
    moved = plans[0].estimate.collectives["all-reduce", "ici"].size_bytes
    assert plans[0].memory.parameters <= moved < 1.3 * plans[0].memory.parameters


def test_bytes_of_parameters_and_optimizer_are_split_as_the_mesh_says(plans):
    data, fsdp, _ = (plan.memory for plan in plans)
    assert data.optimizer == pytest.approx(2 * data.parameters, rel=0.01)
    assert data.parameters / 8 < fsdp.parameters < data.parameters / 2
    for memory in (data, fsdp):
        assert memory.parameters + memory.optimizer + memory.batch < memory.total
        assert memory.fits


@pytest.mark.slow
def test_the_largest_batch_fits_and_a_larger_one_does_not(planner):
    memory = planner.plan(MESHES[0], BatchPlan(32, 32), find_largest=False).memory
    chip = dataclasses.replace(CHIPS["h200"], memory_bytes=memory.total + memory.total // 2)
    small = make_planner(chip)
    small._known = planner._known
    plan = small.plan(MESHES[0], BatchPlan(32, 32))
    assert plan.memory.activations > 0
    assert plan.memory.activations + plan.memory.temporaries == memory.temporaries + memory.activations
    assert plan.largest_batch > 4
    size = 8 * 3 * plan.largest_batch
    over = small.plan(MESHES[0], BatchPlan(size, size), find_largest=False)
    assert not over.memory.fits
    train = TrainConfig(batch_size=size, accumulation_steps="auto")
    cutting = make_planner(chip, dataclasses.replace(CONFIG, train=train))
    cut = cutting.batch_plan(MESHES[0])
    assert cut.target_batch == size
    assert cut.accumulation_steps > 1
    assert cutting.plan(MESHES[0], cut, find_largest=False).memory.fits
    nothing = make_planner(dataclasses.replace(chip, memory_bytes=1000), dataclasses.replace(CONFIG, train=train))
    assert nothing.batch_plan(MESHES[0]) == BatchPlan(size, 8, 8)


def test_rows_of_a_micro_batch_leave_the_number_of_micro_batches_or_the_batch():
    for accumulation_steps, expected in ((1, 24), (2, 48), ("auto", 72)):
        train = TrainConfig(batch_size=64, accumulation_steps=accumulation_steps)
        cut = make_planner(config=dataclasses.replace(CONFIG, train=train)).batch_plan(MESHES[0], rows=3)
        assert (cut.target_batch, cut.micro_batch) == (expected, 24)


def test_micro_batches_add_up_gradients_once():
    train = TrainConfig(batch_size=128, accumulation_steps=4)
    planner = make_planner(config=dataclasses.replace(CONFIG, train=train))
    plan = planner.plan(MESHES[0], planner.batch_plan(MESHES[0]), find_largest=False)
    moved = plan.estimate.collectives["all-reduce", "ici"].size_bytes
    assert plan.memory.parameters <= moved < 1.1 * plan.memory.parameters
    assert plan.accumulation_steps == 4


@pytest.mark.slow
def test_a_search_splits_long_rows_too_where_the_family_can(monkeypatch):
    assert {mesh.sequence for mesh in make_planner()._candidates()} == {1}
    monkeypatch.setattr(planner_module, "_LEAST_TOKENS", 12)
    meshes = [mesh for mesh in make_planner()._candidates() if mesh.sequence > 1]
    assert meshes == [MeshConfig(data=4, sequence=2), MeshConfig(data=1, fsdp=4, sequence=2)]
    monkeypatch.setattr(Planner, "_candidates", lambda planner: [MeshConfig(), meshes[0]])
    found = make_planner().search([4])
    assert len(found) == 2
    speeds = [plan.tokens_per_second_per_device for plan in found]
    assert speeds == sorted(speeds, reverse=True)
    monkeypatch.setattr(Planner, "_candidates", lambda planner: [MeshConfig(data=1, fsdp=8, slices=2)])
    with pytest.raises(MeshError, match="is not divisible by the 2 slices"):
        make_planner().search([4])
    monkeypatch.setattr(Planner, "_candidates", lambda planner: [MeshConfig(), meshes[0]])
    lines = []
    model = dataclasses.replace(CONFIG.model, family="deberta-v2")
    planner = make_planner(config=dataclasses.replace(CONFIG, model=model), say=lines.append)
    assert {plan.mesh["sequence"] for plan in planner.search([4])} == {1}
    assert any("DeBERTa scores the distance" in line for line in lines)


def test_bad_meshes_and_batches_are_refused(planner):
    with pytest.raises(MeshError, match="8 devices"):
        planner.plan(MeshConfig(data=3), BatchPlan(32, 32))
    with pytest.raises(MeshError, match="can not be split"):
        planner.plan(MeshConfig(), BatchPlan(30, 30))
    with pytest.raises(MeshError, match="num_attention_heads"):
        planner.plan(MeshConfig(tensor=8), BatchPlan(32, 32))
    with pytest.raises(ConfigError, match="batches_per_device"):
        PlanRequest("cpu:8", batches_per_device=(0,))
    with pytest.raises(ConfigError, match="search"):
        PlanRequest("cpu:8", meshes=(MeshConfig(),), search=True)


def test_plans_are_shown_and_written(planner, plans):
    request = PlanRequest("h200:8", meshes=MESHES[:2], batches_per_device=(4,), largest=False)
    (found,) = make_plans([planner], request, MeshConfig())
    assert [plan.batch_size for plan in found] == [32, 32]
    text = plan_text(plans[2])
    assert "data 2 x fsdp 2 x tensor 2" in text
    assert "MFU" in text
    assert ranking_text(plans).count("\n") > 3
    document = json.loads(json.dumps(plan_document(planner.topology, planner.chip, [(planner.workload, plans)])))
    (phase,) = document["phases"]
    assert phase["plans"][0]["fits"] is True
    assert "no absent GPU can be compiled for" in document["compiled_for"]
    assert 0 < phase["plans"][0]["model_flops_utilization"] < 1


def test_phases_add_up_to_a_run(plans):
    assert run_text(plans[:1]) == run_text(plans[:2]) == ""
    second = plans[0].estimate.seconds
    phases = [dataclasses.replace(plans[0], num_steps=steps) for steps in (3000, 1000)]
    hours = 4000 * second / 3600
    assert phases[0].run_seconds == 3000 * second
    assert f"4,000 steps, mesh data 8: {hours:.1f} hours, {8 * hours:,.0f} device hours" in run_text(phases)
    assert f"{3000 * second / 3600:.1f} hours" in plan_text(phases[0])


@pytest.mark.slow
def test_the_command_prints_a_table(tmp_path, capsys):
    file = tmp_path / "plan.json"
    sizes = ["--model.size", "tiny", "--model.architecture", json.dumps(ARCHITECTURE), "--data.row_length", "24"]
    arguments = ["plan", "pretrain", "h200:8", *sizes, "--vocab_size", "96", "--largest", "false"]
    assert main([*arguments, "--batches_per_device", "[4]", "--mesh.fsdp", "8", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "Mesh fsdp 8: 32 examples a step" in shown
    assert json.loads(file.read_text("utf-8"))["phases"][0]["plans"][0]["mesh"]["fsdp"] == 8


def test_the_command_explains_bad_input(capsys):
    assert main(["plan", "pretrain", "v5x:4x4"]) == 1
    assert "'v5e'" in capsys.readouterr().err
    assert main(["plan", "finetune", "cpu:8"]) == 1
    assert "names no model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4"])
def test_tpu_programs_gather_no_activations(name):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu")
    from flaxbert.planning.topology import prepare_process

    topology = parse_topology(name)
    prepare_process(topology)
    small = dataclasses.replace(
        CONFIG, model=PretrainModel(size="small", scan_layers=True), data=PretrainData(row_length=128)
    )
    planner = Planner(pretraining_workloads(small)[0], topology, CHIPS[topology.kind], lambda line: None)
    for mesh in MESHES:
        plan = planner.plan(mesh, BatchPlan(64, 64), find_largest=False)
        if mesh.tensor == 1:  # over tensor, this compiler makes a sum of hidden states of a scatter and a gather
            assert plan.gathered_activations == ()
        assert plan.estimate.total_flops * 8 == pytest.approx(plan.model_flops, rel=0.25)
        assert 0.01 < plan.utilization < 1
