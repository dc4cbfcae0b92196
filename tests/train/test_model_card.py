"""The card of a model: front matter that the hub reads, true numbers, nothing about the machine."""

import dataclasses
import re

import huggingface_hub
import numpy as np
import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.config import DataConfig, ModelSource, RunConfig, TrainConfig
from flaxbert.evaluation.bootstrap import Interval
from flaxbert.evaluation.metrics import compute_metrics
from flaxbert.evaluation.report import classification_report
from flaxbert.train.model_card import DataSummary, ModelCardContent, build_model_card, limitations
from flaxbert.train.provenance import library_versions

NAMES = ("negative", "pos|itive")


@pytest.fixture
def content(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 100)
    logits = rng.normal(size=(100, 2))
    before = compute_metrics("sequence-classification", "", logits, labels, NAMES)
    logits[np.arange(100), labels] += 1.5
    after = compute_metrics("sequence-classification", "", logits, labels, NAMES, loss=0.4)
    private = tmp_path / "secret_customer"
    config = RunConfig(
        model=ModelSource(path=str(private / "bert-mini")),
        data=DataConfig(train=str(private / "train.tsv"), validation=str(private / "dev.tsv")),
        train=TrainConfig(learning_rate=3e-5, seed=17),
    )
    return ModelCardContent(
        name="films",
        task="sequence-classification",
        config=config,
        model_config=ModelConfig(problem_type="single_label_classification", labels=NAMES),
        data=DataSummary(
            train=config.data.train,
            validation=config.data.validation,
            num_train=900,
            num_validation=100,
            label_counts={NAMES[0]: 800, NAMES[1]: 100},
            fingerprint="0123abcd",
            num_truncated=12,
            max_length=64,
        ),
        metrics_before=before,
        metrics_after=after,
        primary="accuracy",
        interval=Interval(after["accuracy"], after["accuracy"] - 0.05, after["accuracy"] + 0.05),
        report=classification_report("sequence-classification", "", logits, labels, NAMES),
        step=300,
        seconds=75.0,
        num_parameters=22_700_000,
        versions=library_versions(),
        devices="8 x cpu",
        command="flaxbert finetune --config sst2.yaml",
        plots=["loss.png", "confusion_matrix.png", "elsewhere.png"],
        language=["en"],
    )


def test_front_matter(content):
    card = huggingface_hub.ModelCard(build_model_card(content))
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-classification"
    assert data["language"] == ["en"]
    assert data["tags"] == ["flaxbert", "jax", "bert"]
    assert "license" not in data
    assert "base_model" not in data  # a folder is no id on the hub
    assert "datasets" not in data
    assert "accuracy" in data["metrics"]
    (model,) = data["model-index"]
    assert model["name"] == "films"
    metrics = {entry["name"]: entry for result in model["results"] for entry in result["metrics"]}
    assert metrics["accuracy"]["value"] == pytest.approx(content.metrics_after["accuracy"], abs=1e-6)
    assert metrics["f1_macro"]["type"] == "f1"
    assert "loss" not in metrics
    assert model["results"][0]["dataset"]["name"] == "train.tsv"


def test_hub_ids_are_linked(content):
    config = dataclasses.replace(content.config, model=ModelSource(path="google/bert_uncased_L-2_H-128_A-2"))
    data = dataclasses.replace(content.data, train="stanfordnlp/sst2")
    text = build_model_card(dataclasses.replace(content, config=config, data=data, license="apache-2.0"))
    found = huggingface_hub.ModelCard(text).data.to_dict()
    assert found["base_model"] == "google/bert_uncased_L-2_H-128_A-2"
    assert found["datasets"] == ["stanfordnlp/sst2"]
    assert found["license"] == "apache-2.0"


def test_body_tells_what_was_measured(content):
    text = build_model_card(content)
    after = content.metrics_after["accuracy"]
    assert f"| accuracy | {content.metrics_before['accuracy']:.4f} | {after:.4f} \\[" in text
    assert "| train.learning_rate | 3e-05 |" in text
    assert "seed 17, 0:01:15 (h:mm:ss) of training, on 8 x cpu." in text
    assert "22.7M parameters" in text
    assert "| negative | 800 | 88.9% |" in text
    assert "`0123abcd`" in text
    assert "flaxbert finetune --config sst2.yaml" in text
    assert "![Training loss](plots/loss.png)" in text
    assert "elsewhere.png" not in text
    assert "| jax | " in text
    counts = content.report.confusion
    assert f"| negative | {counts[0, 0]} | {counts[0, 1]} |" in text


def test_labels_can_not_break_the_tables(content):
    text = build_model_card(content)
    assert "pos\\|itive" in text
    rows = [re.sub(r"\\\|", "", line) for line in text.splitlines() if line.startswith("| ")]
    tables = "\n".join(rows).split("| --- |")
    assert len(tables) > 5
    per_label = [row for row in rows if row.startswith(("| positive", "| negative"))]
    assert {row.count("|") for row in per_label} <= {4, 6}


def test_nothing_tells_about_the_machine(content, tmp_path):
    text = build_model_card(content)
    assert str(tmp_path) not in text
    assert "secret_customer" not in text
    assert "bert-mini" in text
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)\b", text)


def test_limits_follow_the_numbers(content):
    lines = "\n".join(limitations(content))
    assert "±0.050" in lines
    assert "8 times the examples" in lines
    assert "12 of 900 training examples were longer than 64 tokens" in lines
    assert "chosen on the validation examples" in lines
    assert "Never found" not in lines
    logits, labels = np.tile([1.0, 0.0], (10, 1)), np.array([0] * 9 + [1])
    report = classification_report("sequence-classification", "", logits, labels, NAMES)
    small = "\n".join(limitations(dataclasses.replace(content, report=report, metrics_test={"accuracy": 0.9})))
    assert "Never found in the validation examples: pos\\|itive." in small
    assert "uncertain scores: negative, pos\\|itive." in small
    assert "chosen on the validation" not in small


@pytest.mark.parametrize(
    ("task", "tag", "library"),
    [
        ("token-classification", "token-classification", "transformers"),
        ("fill-mask", "fill-mask", "transformers"),
        ("sentence-similarity", "sentence-similarity", "sentence-transformers"),
        ("next-sentence-prediction", None, "transformers"),
    ],
)
def test_other_tasks(content, task, tag, library):
    few = dataclasses.replace(
        content, task=task, report=None, interval=None, metrics_before={}, metrics_after={}, primary="", plots=()
    )
    found = huggingface_hub.ModelCard(build_model_card(few)).data.to_dict()
    assert found.get("pipeline_tag") == tag
    assert found["library_name"] == library
    assert "model-index" not in found
