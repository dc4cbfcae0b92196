"""Answers from windows of tokens to characters and back, and a model that is trained, scored and asked."""

import itertools
import json

import numpy as np
import pytest

from flaxbert.config import DataConfig, ModelSource, OutputConfig, RunConfig, TaskConfig, TrainConfig
from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.predict import predict_lines, read_inputs
from flaxbert.evaluation.score import score_model
from flaxbert.model import load
from flaxbert.tasks.base import Setting
from flaxbert.tasks.question_answering import THRESHOLD_KEY, find_candidates
from flaxbert.tasks.registry import get_task
from flaxbert.train.recipes.finetune import finetune
from tests.weights.tiny import write_tiny

TASK = get_task("question-answering")
LONG = "the film was bad . a fine films was the bad . the film"
ROWS = [
    {"question": "a film", "context": LONG, "answers": {"text": "fine films", "answer_start": 21}},
    {"question": "the", "context": "bad film .", "answers": []},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_tiny(tmp_path_factory.mktemp("tiny") / "model", "question-answering"))


def encode(model, rows=ROWS, max_length=14, **options):
    setting = Setting(options=TaskConfig(**{"stride": 4, **options}), max_length=max_length)
    return TASK.encode(model.tokenizer, TASK.read(rows, setting), setting), setting


def perfect(encoded, null=0.0):
    """Returns logits that point at the labels."""
    outputs = []
    for labels, length in zip(encoded.features.labels.tolist(), encoded.features.lengths.tolist(), strict=True):
        logits = np.full((length + 2, 2), -5.0, np.float32)  # with padding behind
        logits[length:] = 99.0
        logits[0] = null
        if labels[0]:
            logits[0] = -5.0
            logits[labels[0], 0] = logits[labels[1], 1] = 5.0
        outputs.append(logits)
    return outputs


def test_windows_that_hold_the_answer_are_labelled_with_its_tokens(model):
    encoded, _ = encode(model)
    windows, features = encoded.details, encoded.features
    assert windows.text_of.tolist() == [0, 0, 0, 1]
    for number, (first, last) in enumerate(features.labels.tolist()):
        place = windows.window(number)
        if first:
            spans = windows.spans[place]
            assert LONG[spans[first, 0] : spans[last, 1]] == "fine films"
    assert (features.labels[:, 0] > 0).sum() >= 1
    assert features.labels[-1].tolist() == [0, 0]


def test_a_question_that_leaves_little_room_has_windows_that_still_move_on(model):
    rows = [{**ROWS[0], "question": "the film was bad"}, ROWS[0], {**ROWS[0], "question": "a"}]
    encoded, _ = encode(model, rows, max_length=12, stride="quarter")
    windows = encoded.details
    for question, shared in enumerate((2, 3, 3)):  # half of 5, and a quarter of 12
        numbers = np.flatnonzero(windows.text_of == question).tolist()
        places = [windows.window(number) for number in numbers]
        starts = [windows.spans[place][windows.in_text[place], 0].tolist() for place in places]
        assert all(a[-shared:] == b[:shared] for a, b in itertools.pairwise(starts))
        assert max({start for several in starts for start in several}) == LONG.rindex("film")


def test_windows_that_would_not_move_on_are_refused(model):
    with pytest.raises(DataError, match=r"row 0: .* leaves 5 of 12 tokens, but windows share 5.*task\.stride"):
        encode(model, [{**ROWS[0], "question": "the film was bad"}], max_length=12, stride=5)
    with pytest.raises(ConfigError, match="must move on"):
        encode(model, max_length=12, stride=9)
    with pytest.raises(DataError, match="row 0"):
        encode(model, [{**ROWS[0], "question": "the film was bad . a film was bad ."}], max_length=12, stride="quarter")
    with pytest.raises(ConfigError, match="task.stride is -1"):
        TaskConfig(stride=-1)


def test_answers_have_characters_and_the_best_window_wins(model):
    encoded, setting = encode(model)
    first, second = TASK.decode(encoded, perfect(encoded), setting)
    assert (first.text, first.start, first.end) == ("fine films", 21, 31)
    assert (second.text, second.start) == ("", -1)
    assert len(first.candidates) == setting.options.num_best
    assert first.candidates[0].score == first.score > 0.9
    never = setting.replace(options=TaskConfig(null_threshold=1e9))
    assert TASK.decode(encoded, perfect(encoded), never)[1].text


def test_scores_and_the_threshold_that_is_kept(model):
    encoded, setting = encode(model)
    scored = TASK.score(encoded, perfect(encoded), setting)
    assert scored.metrics["f1"] == scored.metrics["exact_match"] == scored.metrics["best_f1"] == 1.0
    assert scored.metrics["no_answer_f1"] == 1.0
    low = TASK.score(encoded, perfect(encoded, null=-6.0), setting)  # no answer scores too low
    assert (low.metrics["f1"], low.metrics["best_f1"]) == (0.5, 1.0)
    remembered = setting.replace(extra=dict(low.changes))
    assert TASK.score(encoded, perfect(encoded, null=-6.0), remembered).metrics["f1"] == 1.0
    assert low.interval("best_f1").value == 1.0
    assert low.make_report() is None


def test_candidates_are_the_best_of_all_pairs():
    generator = np.random.default_rng(0)
    logits, inside = generator.normal(size=(9, 2)), np.arange(2, 8)
    pairs = [(logits[i, 0] + logits[j, 1], i, j) for i in inside for j in inside if i <= j < i + 3]
    found = find_candidates(logits, inside, 3, 5)
    assert [(i, j) for _, i, j in found] == [(i, j) for _, i, j in sorted(pairs, reverse=True)[:5]]
    assert find_candidates(logits, np.arange(0), 3, 5) == []


def test_what_can_not_be_asked_is_refused(model):
    with pytest.raises(DataError, match="2 questions, but 1 texts"):
        model.predict(["a", "b"], ["c"])
    with pytest.raises(DataError, match=r"row 0.*too long|row 0: .*"):
        encode(model, [{"question": "a film " * 9, "context": "bad", "answers": []}])
    setting = Setting(data=DataConfig(truncation="error"), max_length=14)
    with pytest.raises(DataError, match=r"row 0: the input has more than data\.max_length"):
        TASK.encode(model.tokenizer, TASK.read(ROWS, setting), setting)


def test_predictions_of_files_and_texts(model, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({k: row[k] for k in ("question", "context")}) for row in ROWS))
    examples = read_inputs(model, (), str(path), DataConfig(label_column=""))
    lines = [json.loads(line) for line in predict_lines(model, examples, format="jsonl", batch_size=2, max_length=None)]
    assert [line["question"] for line in lines] == ["a film", "the"]
    for line, row in zip(lines, ROWS, strict=True):
        assert line["start"] == -1 or row["context"][line["start"] : line["end"]] == line["answer"]
    examples = read_inputs(model, ("a film", "the"), "", DataConfig(label_column=""), pairs=(LONG,))
    shown = list(predict_lines(model, examples, format="text", batch_size=2, max_length=None))
    assert [line.split("\t")[-1] for line in shown] == ["a film", "the"]


@pytest.mark.slow
def test_a_run_learns_and_keeps_its_threshold(tmp_path):
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(json.dumps(row) for row in ROWS * 8))
    run = RunConfig(
        model=ModelSource(path=str(write_tiny(tmp_path / "start")), task="question-answering", dropout_rate=0.0),
        data=DataConfig(train=str(train), validation=str(train), max_length=16, length_buckets=(16,)),
        task=TaskConfig(stride=4),
        train=TrainConfig(batch_size=16, num_steps=10, learning_rate=1e-2),
        output=OutputConfig(folder=str(tmp_path / "run"), tensorboard=False, plots=False, progress="off"),
    )
    result = finetune(run, say=lambda line: None)
    assert result.after["loss"] < result.before["loss"]
    loaded = load(tmp_path / "run" / "model")
    assert THRESHOLD_KEY in loaded.config.extra
    score = score_model(loaded, DataConfig(max_length=16), str(train), options=TaskConfig(stride=4))
    assert score.metrics["f1"] == pytest.approx(score.metrics["best_f1"]) == pytest.approx(result.after["best_f1"])
