"""Every configuration parses strictly, and its data section reads the real files."""

import pathlib

import jax.numpy as jnp
import jsonargparse
import pytest
import yaml

from flaxbert.architecture import ModelConfig
from flaxbert.config import DistillConfig, PretrainConfig, RunConfig
from flaxbert.data.columns import count_labels, encode_labels, infer_problem_type, label_set, read_examples
from flaxbert.tasks.base import Setting
from flaxbert.tasks.registry import get_task
from flaxbert.train.recipes.student import source_layers, student_architecture
from tests.helpers import ROOT, slow_unless

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
"""The shape of the teacher that the configuration of SST-2 is made for."""

PRETRAINING = sorted((ROOT / "configs").glob("pretrain_*.yaml"))
DISTILLING = sorted((ROOT / "configs").glob("distill_*.yaml"))
CONFIGS = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if path not in (*PRETRAINING, *DISTILLING)]

REAL = {
    "sst2": ("hide new secretions from the parental units ", None, {"negative": 29780, "positive": 37569}, 872),
    "cola": ("Our friends won't buy this analysis", None, {"unacceptable": 2528, "acceptable": 6023}, 527),
    "mrpc": ('Amrozi accused his brother, whom he called "the witness"', "Referring to him as only", {"different": 1323, "paraphrase": 2753}, 0),
    "stsb": ("A plane is taking off.", "An air plane is taking off.", {}, 1500),
    "rte": ("No Weapons of Mass", "Weapons of Mass", {"entailment": 1249, "not_entailment": 1241}, 277),
    "trec": ("How did serfdom develop", None, {"ABBR": 86, "DESC": 1162, "ENTY": 1250, "HUM": 1223, "LOC": 835, "NUM": 896}, 0),
    "ag_news": ("BEA buzzing about Beehive", None, {"World": 1259, "Sports": 1257, "Business": 1281, "Sci/Tech": 1203}, 0),
    "chnsenticorp": ("选择珠江花园的原因就是方便", None, {"negative": 4801, "positive": 4799}, 1200),
}  # fmt: skip
"""Start of the first text and second text, examples per label, and rows of the validation file."""


def parse(path: pathlib.Path) -> RunConfig:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RunConfig, "run")
    return parser.instantiate(parser.parse_object({"run": yaml.safe_load(path.read_text(encoding="utf-8"))})).run


OTHER_TASKS = {
    "wnut17": (3394, 1009, "@paulwalk It 's the view from where I 'm living for two weeks ."),
    "ncbi_disease": (5424, 923, "Identification of APC2 , a homologue of the adenomatous polyposis coli"),
    "squad2": (6078, 0, ""),
    "semeval2010_task8": (8000, 0, "The system as described above has its greatest application in an arrayed $ conf"),
}
"""Training and validation examples of the tasks that are no sequence classification, and the start of the first text."""


@pytest.mark.parametrize("path", DISTILLING, ids=lambda path: path.stem)
def test_distillation_configs_are_complete(path):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DistillConfig, "run")
    run = parser.instantiate(parser.parse_object({"run": yaml.safe_load(path.read_text(encoding="utf-8"))})).run
    assert run.data.train
    assert run.teacher.path
    assert run.output.folder == f"runs/{path.stem}"
    assert run.distillation.has_two_stages
    student = student_architecture(run.student, ModelConfig(**MINILM), source_layers(run.student, 6))
    assert student.num_hidden_layers == 4


@pytest.mark.parametrize("path", PRETRAINING, ids=lambda path: path.stem)
def test_pretraining_configs_are_complete(path):
    from flaxbert.train.optimizers import make_optimizer
    from flaxbert.train.recipes.pretraining_networks import new_model_config
    from flaxbert.train.recipes.pretraining_setup import phases_of

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PretrainConfig, "run")
    run = parser.instantiate(parser.parse_object({"run": yaml.safe_load(path.read_text(encoding="utf-8"))})).run
    assert run.data.corpora
    assert run.output.folder == f"runs/{path.stem}"
    longest = max(phase.row_length for phase in phases_of(run))
    assert new_model_config(run.model, 30_528, longest, 0).max_length >= longest
    assert float(make_optimizer(run.train, 1000).schedule(jnp.int32(1000))) < run.train.learning_rate


def test_there_is_one_for_every_task():
    assert {path.stem for path in CONFIGS} == {*REAL, *OTHER_TASKS, "csv", "swag"}


@pytest.mark.parametrize("name", slow_unless(lambda name: name != "ncbi_disease", OTHER_TASKS))
def test_tasks_read_their_real_data(name, test_data):
    run = parse(ROOT / "configs" / f"{name}.yaml")
    task, setting = get_task(run.model.task), Setting(run.data, run.task)
    num_train, num_validation, start = OTHER_TASKS[name]
    examples = task.read(str(test_data / pathlib.Path(run.data.train).relative_to("data")), setting)
    assert len(examples) == num_train
    assert not start or examples.texts[0].startswith(start)
    assert task.primary(setting.replace(labels=task.find_labels(examples, setting)[0]), run.train.metric)[1]
    if num_validation:
        held_out = task.read(str(test_data / pathlib.Path(run.data.validation).relative_to("data")), setting)
        assert len(held_out) == num_validation


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_parses_strictly_and_is_relative(path):
    run = parse(path)
    assert run.model.path
    assert run.output.folder == f"runs/{path.stem}"
    for source in (run.data.train, run.data.validation, run.data.test):
        assert not source or source.startswith("data/")
    assert set(run.data.label_map.values()) <= set(run.data.labels)
    assert f"--config configs/{path.stem}.yaml --data.train" in path.read_text(encoding="utf-8")


def test_a_misspelt_key_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("data:\n  text_colum: x\n")
    with pytest.raises(jsonargparse.ArgumentError, match="text_colum"):
        parse(path)


@pytest.mark.parametrize("name", REAL)
def test_it_reads_the_real_data(name, test_data):
    run = parse(ROOT / "configs" / f"{name}.yaml")
    first, second, counts, num_validation = REAL[name]
    examples = read_examples(str(test_data / pathlib.Path(run.data.train).relative_to("data")), run.data)
    assert examples.texts[0].startswith(first)
    assert (examples.pairs is None) == (second is None)
    assert examples.pairs is None or examples.pairs[0].startswith(second)
    problem_type = run.model.problem_type or infer_problem_type(examples)
    labels = label_set(examples, problem_type, run.data)
    numbers = encode_labels(examples, labels, problem_type, run.data)
    assert count_labels(numbers, labels, problem_type) == counts
    if not counts:
        assert (problem_type, len(numbers), float(numbers[0])) == ("regression", 5749, 5.0)
        assert 0.0 <= float(numbers.min()) < float(numbers.max()) <= 5.0
    for source in (run.data.validation, run.data.test):
        if source:
            held_out = read_examples(str(test_data / pathlib.Path(source).relative_to("data")), run.data)
            encode_labels(held_out, labels, problem_type, run.data)
            assert len(held_out) == (516 if source == run.data.test else num_validation)


def test_the_csv_example_in_the_comment_works(tmp_path):
    lines = (ROOT / "configs" / "csv.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("#   text,label")
    path = tmp_path / "my_train.csv"
    path.write_text("\n".join(line.removeprefix("#   ") for line in lines[start : start + 3]))
    examples = read_examples(str(path), parse(ROOT / "configs" / "csv.yaml").data)
    assert list(examples.texts) == ["The room was clean, the staff kind.", "Nobody answered the phone."]
    assert examples.raw_labels == ["praise", "complaint"]
