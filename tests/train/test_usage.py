"""The programs on a card run as they stand, in the folder of a model."""

import contextlib
import io

import pytest

from flaxbert.train.usage import usage_snippets

TEXT = "A fine film, isn't it?"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film", ",", "is", "##n", "'", "t", "it", "?"]

CASES = [
    ("sequence-classification", "single_label_classification", False),
    ("sequence-classification", "single_label_classification", True),
    ("sequence-classification", "multi_label_classification", False),
    ("sequence-classification", "regression", True),
    ("token-classification", "", False),
    ("fill-mask", "", False),
    ("next-sentence-prediction", "", True),
    ("feature-extraction", "", False),
]


@pytest.mark.parametrize("task", ["question-answering", "relation-classification", "multiple-choice"])
def test_tasks_without_a_pipeline_show_flaxbert_alone(task):
    ((name, code),) = usage_snippets(task, "", 'He said "no"\nand \\left```').items()
    assert name == "flaxbert"
    compile(code, name, "exec")
    assert "model.predict([" in code


@pytest.mark.parametrize(("task", "problem_type", "is_pair"), [*CASES, ("sentence-similarity", "", False)])
def test_snippets_are_python(task, problem_type, is_pair):
    snippets = usage_snippets(task, problem_type, 'He said "no"\nand \\left```', is_pair)
    assert len(snippets) == 2
    for name, code in snippets.items():
        compile(code, name, "exec")
        assert not any(line.startswith("```") for line in code.splitlines())


def save_with_transformers(folder, task, problem_type):
    import torch
    import transformers

    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    options = (
        {"problem_type": problem_type, "num_labels": 1 if problem_type == "regression" else 3} if problem_type else {}
    )
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        **options,
    )
    torch.manual_seed(0)
    architecture = {
        "sequence-classification": transformers.BertForSequenceClassification,
        "token-classification": transformers.BertForTokenClassification,
        "fill-mask": transformers.BertForMaskedLM,
        "next-sentence-prediction": transformers.BertForNextSentencePrediction,
        "feature-extraction": transformers.BertModel,
    }[task]
    architecture(config).save_pretrained(folder)


def run(code, folder):
    output = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(output):
        exec(compile(code, "snippet", "exec"), {})
    return output.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("task", "problem_type", "is_pair"), CASES)
def test_snippets_run(tmp_path, task, problem_type, is_pair):
    pytest.importorskip("torch")
    save_with_transformers(tmp_path, task, problem_type)
    snippets = usage_snippets(task, problem_type, TEXT, is_pair)
    output = {name: run(code, tmp_path) for name, code in snippets.items()}
    assert all(text.strip() for text in output.values())
    if task == "sequence-classification" and problem_type == "regression":
        score = float(output["transformers"].split("'score': ")[1].split("}")[0])
        assert float(output["flaxbert"]) == pytest.approx(score, abs=1e-5)
    elif problem_type == "single_label_classification":
        label, score = output["flaxbert"].split()
        assert label in output["transformers"]
        assert float(output["transformers"].split("'score': ")[1].split("}")[0]) == pytest.approx(
            float(score), abs=1e-5
        )


@pytest.mark.slow
def test_sentence_vectors_run(minilm_path):
    pytest.importorskip("sentence_transformers")
    snippets = usage_snippets("sentence-similarity", "", TEXT)
    outputs = [run(code, minilm_path) for code in snippets.values()]
    first, second = ([float(word) for word in text.replace("[", " ").replace("]", " ").split()] for text in outputs)
    assert first == pytest.approx(second, abs=1e-4)
    assert len(first) == 4  # two by two similarities
