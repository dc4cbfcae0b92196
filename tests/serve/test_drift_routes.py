"""A version of a registry is fed with texts like those of training and others; /drift, metrics and log tell them apart."""

import logging
import re

import httpx2
import jax
import numpy as np
import pytest

import flaxbert
from flaxbert.config import DriftConfig, RolloutConfig
from flaxbert.data.fingerprint import fingerprint
from flaxbert.data.tokenization import tokenize
from flaxbert.registry import Registry
from flaxbert.serve.app import make_app
from flaxbert.serve.functions import functions_of
from flaxbert.serve.loading import parse_specs
from flaxbert.serve.operations.spans import tag
from flaxbert.serve.operations.work import Subject
from flaxbert.serve.tokenizers import TokenizerPool
from tests.serve.conftest import BASE
from tests.serve.running import SMALL, running
from tests.serve.test_fleet import wait_for, write_version
from tests.weights.tiny import random_params, write_tiny

NUM_TEXTS, AT_ONCE = 192, 32
CONFIG = DriftConfig(
    window_examples=NUM_TEXTS, min_examples=64, reference_examples=NUM_TEXTS, check_seconds=0.05, confidence=0.9
)


def texts_of(random, count, words=(3, 9)):
    vocabulary = ["a", "fine", "film", "bad", "the", "was", "."]
    return [" ".join(random.choice(vocabulary, random.integers(*words))) for _ in range(count)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A server with a version that has a fingerprint, and a folder without; and texts like those of training, by their labels."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("drift")
    written = write_version(folder / "model", 1)
    model = flaxbert.load(written)
    texts = texts_of(random, 600)
    labels = [prediction.label for prediction in model.predict(texts)]
    counts = {name: labels.count(name) for name in model.config.label_names}
    assert sum(count > 30 for count in counts.values()) >= 2, counts
    features = tokenize(model.tokenizer, texts, max_length=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAXBERT_REGISTRY", str(folder / "registry"))
        registry = Registry()
        data = fingerprint(features, model.tokenizer.unk_token_id, counts, "texts", [texts])
        registry.add("film", written, metrics={"accuracy": 0.8}, data=data)
        registry.promote("film:1")
        app = make_app(
            parse_specs(("registry:film", f"plain={written}")),
            engine=SMALL,
            rollout=RolloutConfig(poll_seconds=0.0),
            drift=CONFIG,
        )
        with running(app) as url:
            by_label = {name: [t for t, own in zip(texts, labels, strict=True) if own == name] for name in counts}
            yield url, texts, by_label


def feed(url, texts, model="film"):
    """Sends as many texts as a window holds."""
    with httpx2.Client(timeout=60) as client:
        for start in range(0, NUM_TEXTS, AT_ONCE):
            several = [[texts[(start + place) % len(texts)]] for place in range(AT_ONCE)]
            answer = client.post(f"{url}/models/{model}/predict", json={"inputs": several})
            assert answer.status_code == 200, answer.text


def measures(url, model="film"):
    document = httpx2.get(f"{url}/models/{model}/drift").json()
    (version,) = document["versions"]
    assert document["alert"] == any(measure["alert"] for measure in version["measures"])
    return {measure["what"]: measure for measure in version["measures"]}


def alerts(url, model="film"):
    return {what for what, measure in measures(url, model).items() if measure["alert"]}


def metric(url, name, **labels):
    wanted = {f'{key}="{value}"' for key, value in {"version": "1", **labels}.items()}
    for line in httpx2.get(f"{url}/metrics").text.splitlines():
        found = re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line)
        if found and wanted <= set(found[1].split(",")):
            return float(found[2])
    return None


def test_texts_like_those_of_training_do_not_alert(watched):
    url, texts, _ = watched
    feed(url, texts)
    found = measures(url)
    assert alerts(url) == set()
    assert {
        what: found[what]["origin"] for what in ("lengths", "scripts", "labels", "unknown_tokens")
    } == dict.fromkeys(("lengths", "scripts", "labels", "unknown_tokens"), "training")
    assert found["confidence"]["origin"] == "first examples"
    assert found["lengths"]["num_examples"] == NUM_TEXTS
    assert found["lengths"]["threshold"] == CONFIG.lengths
    assert found["labels"]["reference"] == pytest.approx(found["labels"]["observed"], abs=0.15)
    for what in found:
        assert metric(url, "flaxbert_drift_alert", model="film", what=what) == 0.0
        assert metric(url, "flaxbert_drift_examples", model="film", what=what) == NUM_TEXTS
        assert metric(url, "flaxbert_drift", model="film", what=what) == pytest.approx(found[what]["value"])
    assert metric(url, "flaxbert_unknown_token_rate", model="film") == 0.0
    assert metric(url, "flaxbert_script_share", model="film", script="Latin") > 0.9
    assert metric(url, "flaxbert_confidence_mean", model="film") == pytest.approx(found["confidence"]["observed"])
    shares = [metric(url, "flaxbert_label_share", model="film", label=name) for name in ("bad", "fair", "good")]
    assert sum(shares) == pytest.approx(1.0)


def test_long_texts_other_scripts_and_one_label_alert_and_each_is_logged_once(watched, caplog):
    url, texts, by_label = watched
    most = max(by_label.values(), key=len)
    least = min((several for several in by_label.values() if several), key=len)
    with caplog.at_level(logging.INFO, "flaxbert.serve.drift"):
        feed(url, texts_of(np.random.default_rng(1), 50, (20, 28)))
        assert "lengths" in alerts(url)
        assert metric(url, "flaxbert_drift_alert", model="film", what="lengths") == 1.0
        feed(url, ["電影很好 " + text for text in texts])
        assert {"scripts", "unknown_tokens"} <= alerts(url)
        assert metric(url, "flaxbert_unknown_token_rate", model="film") > 0.05
        assert metric(url, "flaxbert_script_share", model="film", script="Han") > 0.1
        feed(url, least if len(least) < len(texts) / 2 else most)
        assert "labels" in alerts(url)
        assert max(measures(url)["labels"]["observed"].values()) == 1.0
        feed(url, texts)
        assert alerts(url) == set()
        assert metric(url, "flaxbert_drift_alert", model="film", what="labels") == 0.0
    for what in ("lengths", "scripts", "unknown_tokens", "labels"):
        begun = [record for record in caplog.records if f"version 1 drifts: {what} " in record.getMessage()]
        ended = [record for record in caplog.records if f"{what} no longer drifts" in record.getMessage()]
        assert (len(begun), len(ended)) == (1, 1)


def test_the_log_tells_even_where_nobody_asks(watched, caplog):
    url, texts, _ = watched
    with caplog.at_level(logging.INFO, "flaxbert.serve.drift"):
        feed(url, texts_of(np.random.default_rng(2), 50, (20, 28)))
        wait_for(lambda: any("drifts: lengths" in record.getMessage() for record in caplog.records))
        feed(url, texts)
        wait_for(lambda: any("lengths no longer drifts" in record.getMessage() for record in caplog.records))


def test_a_folder_is_compared_with_its_first_examples(watched):
    url, texts, _ = watched
    assert measures(url, "plain") == {}
    feed(url, texts, "plain")
    assert {measure["origin"] for measure in measures(url, "plain").values()} == {"first examples"}
    assert alerts(url, "plain") == set()
    feed(url, texts_of(np.random.default_rng(3), 50, (20, 28)), "plain")
    assert "lengths" in alerts(url, "plain")
    everything = httpx2.get(f"{url}/drift").json()
    assert everything["enabled"]
    assert {model["name"]: model["alert"] for model in everything["models"]}["plain"]


def test_raw_scores_are_no_confidences(watched):
    url, texts, _ = watched
    feed(url, texts, "plain")
    before = measures(url, "plain")["confidence"]["observed"]
    answer = httpx2.post(
        f"{url}/models/plain/predict", json={"inputs": [[text] for text in texts[:32]], "raw_scores": True}
    )
    assert answer.status_code == 200
    assert measures(url, "plain")["confidence"]["observed"] == before


def test_a_mistake_in_watching_breaks_no_request(watched, monkeypatch, caplog):
    url, texts, _ = watched

    def fail(*arguments):
        raise ZeroDivisionError

    for name in ("sketch_of", "Monitor.observe"):
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "flaxbert.serve.drift"):
            patch.setattr(f"flaxbert.serve.drift_board.{name}", fail)
            answers = [httpx2.post(f"{url}/predict", json={"inputs": texts[0]}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
    assert len([record for record in caplog.records if "could not be looked at" in record.getMessage()]) == 1


def test_a_model_that_is_not_there_is_said(watched):
    url, _, _ = watched
    assert httpx2.get(f"{url}/models/flim/drift").status_code == 404


@pytest.fixture(scope="module")
def spans(tmp_path_factory):
    """A server with a tagger whose fingerprint tells the tags of its training words, a model of answers and one of masks; texts and their tags."""
    folder = tmp_path_factory.mktemp("spans")
    for task in ("token-classification", "question-answering", "fill-mask"):
        labels = ("O", "B-PER", "I-PER", "B-LOC") if task == "token-classification" else ()
        config = BASE.replace(labels=labels, num_labels=len(labels) or 2)
        model = flaxbert.load(write_tiny(folder / task, task, config), task=task)
        params = jax.tree.map(lambda leaf: 20 * leaf if leaf.ndim > 1 else leaf, random_params(config, task, 5))
        model.replace(params=params).save(folder / task, overwrite=True)
    texts = texts_of(np.random.default_rng(0), 300)
    tagger = flaxbert.load(folder / "token-classification")
    tags = [tag for text in tagger.predict(texts) for tag in text.tags]
    counts = {name: tags.count(name) for name in tagger.config.label_names}
    assert sum(count > len(tags) / 10 for count in counts.values()) >= 2, counts
    features = tokenize(tagger.tokenizer, texts, max_length=32)
    data = fingerprint(features, tagger.tokenizer.unk_token_id, counts, "texts", [texts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAXBERT_REGISTRY", str(folder / "registry"))
        Registry().add("tagger", folder / "token-classification", metrics={"f1": 0.5}, data=data)
        Registry().promote("tagger:1")
        words = ("registry:tagger", f"answers={folder / 'question-answering'}", f"masks={folder / 'fill-mask'}")
        with running(make_app(parse_specs(words), engine=SMALL, drift=CONFIG)) as url:
            yield url, texts, tagger


def ask(url, path, bodies):
    with httpx2.Client(timeout=60) as client:
        for body in bodies:
            answer = client.post(f"{url}/models/{path}", json=body)
            assert answer.status_code == 200, answer.text


def test_tags_of_words_are_compared_with_those_of_training(spans):
    url, texts, _ = spans
    ask(url, "tagger/ner", [{"inputs": texts[start : start + AT_ONCE]} for start in range(0, 192, AT_ONCE)])
    found = measures(url, "tagger")
    assert found["labels"]["origin"] == "training"
    assert found["labels"]["observed"] == pytest.approx(found["labels"]["reference"], abs=0.15)
    assert found["confidence"]["observed"] > 0.0
    assert alerts(url, "tagger") == set()
    ask(url, "tagger/ner", [{"inputs": ["film"] * AT_ONCE}] * 6)
    assert "labels" in alerts(url, "tagger")
    assert max(measures(url, "tagger")["labels"]["observed"].values()) == 1.0


@pytest.mark.parametrize(("words", "watched"), [(1, 1), (8, 8), (9, 5), (16, 8), (23, 8)])
def test_of_a_long_text_some_words_are_watched(spans, words, watched):
    _, _, tagger = spans
    subject = Subject(tagger, functions_of(tagger), TokenizerPool(tagger.tokenizer, 1), 32)
    work = tag(subject, [" ".join(["film"] * words)])
    answer = work.finish([np.zeros((row.length, 4), np.float32) for row in work.rows])
    assert work.outcome(answer).labels == ["O"] * watched
    entities = [{"score": 0.5}] * words  # of taggers whose words are labelled singly, each is one
    assert len(work.outcome([entities]).confidences) == watched


def test_scores_of_answers_and_words_are_watched(spans):
    url, texts, _ = spans
    pairs = [{"inputs": {"question": "film", "context": text}} for text in texts[:8]]
    ask(url, "answers/qa", pairs)
    assert 0.0 < measures(url, "answers")["confidence"]["observed"] <= 1.0
    assert measures(url, "answers")["confidence"]["num_examples"] == 8
    ask(url, "masks/fill-mask", [{"inputs": f"{text} [MASK]"} for text in texts[:5]])
    ask(url, "masks/fill-mask", [{"inputs": "a [MASK]", "parameters": {"targets": ["film"]}}])
    assert measures(url, "masks")["confidence"]["num_examples"] == 5
    assert "labels" not in measures(url, "masks")
