"""The runner of GLUE: what each run reads, and the table at the end."""

import json
import types

import pytest

from flaxbert.config import DataConfig, ModelSource, OutputConfig, RunConfig, TrainConfig
from flaxbert.errors import ConfigError
from flaxbert.train.recipes.glue import GLUE_TASKS, GlueScore, data_config, glue_table, run_glue
from tests.weights.tiny import write_tiny


def config_of(folder, **model):
    return RunConfig(
        model=ModelSource(**model),
        data=DataConfig(max_length=8, length_buckets=(8,), validation_rate=0.25),
        train=TrainConfig(batch_size=8, num_steps=2),
        output=OutputConfig(folder=str(folder), tensorboard=False, plots=False, progress="off"),
    )


def test_every_task_reads_its_files_or_the_hub():
    for name, task in GLUE_TASKS.items():
        hub = data_config(name, "", DataConfig(max_length=99), {})
        assert (hub.train, hub.name, hub.format, hub.max_length) == ("nyu-mll/glue", name, "hub", 99)
        local = data_config(name, "glue", DataConfig(), {})
        assert local.train == f"glue/{task.title}/train.tsv"
        assert not local.quoting
    assert data_config("mnli", "", DataConfig(), {}).test_split == "validation_mismatched"
    assert data_config("mnli", "glue", DataConfig(), {}).test == "glue/MNLI/dev_mismatched.tsv"
    changed = data_config("cola", "", DataConfig(), {"train": "a.tsv"})
    assert (changed.train, changed.text_column, changed.header, changed.validation) == ("a.tsv", "3", False, "")
    with pytest.raises(ConfigError, match=r"data\.trian of rte is no option.*train"):
        data_config("rte", "", DataConfig(), {"trian": "a.tsv"})


def test_runs_differ_in_seed_and_metric_alone(tmp_path):
    runs = []

    def train(config, say):
        runs.append(config)
        value = 0.5 + 0.1 * config.train.seed
        metrics = dict.fromkeys(("accuracy", "f1", "pearson", "spearman", "matthews_correlation"), value)
        return types.SimpleNamespace(reason="finished", after=metrics, test={"accuracy": value - 0.1})

    lines = []
    scores = run_glue(config_of(tmp_path), seeds=(0, 2), say=lines.append, train=train)
    assert [score.task for score in scores] == list(GLUE_TASKS)
    assert len(runs) == 18
    assert [run.train.seed for run in runs[:2]] == [0, 2]
    assert runs[6].model.problem_type == "regression"
    assert runs[0].output.folder == str(tmp_path / "cola" / "seed-0")
    assert scores[5].values == {"accuracy": [0.5, 0.7], "test:accuracy": [0.4, pytest.approx(0.6)]}
    table = lines[-1]
    assert "60.0 ± 14.1 / 50.0 ± 14.1" in table
    assert "59.4" in table  # (8 * 60 + 55) / 9
    assert json.loads((tmp_path / "glue.json").read_text())["scores"]["cola"] == {"matthews_correlation": [0.5, 0.7]}


def test_wrong_names_and_seeds_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no task 'sts2' of GLUE.*'sst2'"):
        run_glue(config_of(tmp_path), tasks=("sts2",))
    with pytest.raises(ConfigError, match="seeds are"):
        run_glue(config_of(tmp_path), seeds=())
    with pytest.raises(ConfigError, match="no task 'x'"):
        run_glue(config_of(tmp_path), tasks=("cola",), changes={"x": {}})


def test_one_seed_has_no_spread():
    table = glue_table([GlueScore("sst2", {"accuracy": [0.915]})])
    assert "91.5" in table
    assert "±" not in table


@pytest.mark.slow
def test_a_whole_run_from_files(tmp_path):
    folder = tmp_path / "glue" / "CoLA"
    folder.mkdir(parents=True)
    lines = [f"x\t{i % 2}\t\t{('bad film', 'a fine film')[i % 2]}" for i in range(16)]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    config = config_of(tmp_path / "run", path=str(write_tiny(tmp_path / "start")))
    said = []
    (score,) = run_glue(config, tasks=("CoLA",), seeds=(1,), folder=str(tmp_path / "glue"), say=said.append)
    assert list(score.values) == ["matthews_correlation"]
    assert (tmp_path / "run" / "cola" / "seed-1" / "model" / "config.json").is_file()
    assert "CoLA" in said[-1]
