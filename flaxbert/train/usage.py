"""Short programs that use a saved model, for its card: with flaxbert, and with what else reads the folder."""

_PIPELINE = """\
from transformers import pipeline

{name} = pipeline({task!r}, model="."{options})
print({name}({example}))
"""

_FLAXBERT = """\
import flaxbert

model = flaxbert.load(".")
{body}
"""

_NEXT_SENTENCE = """\
from transformers import AutoModelForNextSentencePrediction, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForNextSentencePrediction.from_pretrained(".")
inputs = tokenizer({first!r}, {second!r}, return_tensors="pt")
print(model(**inputs).logits.softmax(-1)[0, 0].item())  # how likely the second text follows the first
"""

_SENTENCE_TRANSFORMERS = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")
vectors = model.encode([{first!r}, {second!r}], normalize_embeddings=True)
print(vectors @ vectors.T)
"""

SECOND_TEXT = "Another text."


_BODIES = {
    "token-classification": (
        "for entity in model.predict([{text!r}])[0].entities:\n    print(entity.label, entity.text, entity.start, entity.end)"
    ),
    "question-answering": (
        'answer = model.predict(["What is it?"], [{text!r}])[0]\nprint(answer.text, answer.start, answer.end, answer.score)'
    ),
    "relation-classification": (
        'prediction = model.predict(["The <e1>cat</e1> sat on the <e2>mat</e2>."])[0]\nprint(prediction.label, prediction.score)'
    ),
    "multiple-choice": (
        'choice = model.predict([{text!r}], [["the first", "the second"]])[0]\nprint(choice.text, choice.score)'
    ),
}
"""What is done with a model of each task that is not the labelling of whole texts."""

_WITHOUT_PIPELINE = frozenset({"question-answering", "relation-classification", "multiple-choice"})
"""Tasks for which only flaxbert's program is shown: transformers has no pipeline for them, or none any more."""


def _flaxbert_body(task: str, problem_type: str, text: str, is_pair: bool) -> str:
    if task in ("sentence-similarity", "feature-extraction"):
        return f"vectors = model.encode([{text!r}, {SECOND_TEXT!r}], normalize=True)\nprint(vectors @ vectors.T)"
    if task in ("fill-mask", "pretraining"):
        return f"print(model.predict_logits([{text!r}])[0].shape)  # scores of each token"
    if task in _BODIES:
        return _BODIES[task].format(text=text)
    texts = f"[{text!r}], [{SECOND_TEXT!r}]" if is_pair or task == "next-sentence-prediction" else f"[{text!r}]"
    shown = "score" if problem_type == "regression" else "label, prediction.score"
    return f"for prediction in model.predict({texts}):\n    print(prediction.{shown})"


def _pipeline(task: str, problem_type: str, text: str, is_pair: bool) -> str:
    if task == "token-classification":
        return _PIPELINE.format(name="tagger", task=task, options="", example=repr(text))
    if task in ("fill-mask", "pretraining"):
        example = f'f"{{fill.tokenizer.mask_token}} " + {text!r}'
        return _PIPELINE.format(name="fill", task="fill-mask", options="", example=example)
    if task == "feature-extraction":
        return _PIPELINE.format(name="extract", task=task, options="", example=repr(text))
    options = {
        "regression": ', function_to_apply="none"',
        "multi_label_classification": ', function_to_apply="sigmoid", top_k=None',
    }.get(problem_type, "")
    example = f'{{"text": {text!r}, "text_pair": {SECOND_TEXT!r}}}' if is_pair else repr(text)
    return _PIPELINE.format(name="classify", task="text-classification", options=options, example=example)


def usage_snippets(task: str, problem_type: str, text: str, is_pair: bool = False) -> dict[str, str]:
    """Returns programs by the name of the library; each runs in the model's folder.

    Args:
      task: Canonical task name.
      problem_type: Of a sequence classification.
      text: A text to try.
      is_pair: Whether an input is a pair of texts.
    """
    text = " ".join(text.split())[:200]
    snippets = {"flaxbert": _FLAXBERT.format(body=_flaxbert_body(task, problem_type, text, is_pair))}
    if task == "sentence-similarity":
        snippets["sentence-transformers"] = _SENTENCE_TRANSFORMERS.format(first=text, second=SECOND_TEXT)
    elif task == "next-sentence-prediction":
        snippets["transformers"] = _NEXT_SENTENCE.format(first=text, second=SECOND_TEXT)
    elif task not in _WITHOUT_PIPELINE:
        snippets["transformers"] = _pipeline(task, problem_type, text, is_pair)
    return snippets
