"""What bodies mean: schema, operation, arguments and shape of the answer, once for the plain routes, the streams and ``/invocations``."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from flaxbert.serve import schemas
from flaxbert.serve.errors import RequestError
from flaxbert.serve.functions import MASK_TASKS, MASKED, SPARSE, TOKENS, VECTORS
from flaxbert.serve.loading import Served
from flaxbert.serve.operations import classification, embedding, masks, spans
from flaxbert.serve.operations.work import Truncation, Work

Cut = Callable[[schemas.Truncated | None], Truncation]
"""Says what happens to texts that are too long, from what the client says."""


def as_list(inputs: Any) -> list[Any]:
    """Returns one text or one list of ids as a list of one.

    Args:
      inputs: Texts or ids, one or several.
    """
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
        return [inputs]
    return list(inputs)


def split_pairs(inputs: str | list[str | list[str]]) -> tuple[list[str], list[str] | None, bool]:
    """Returns texts and second texts of ``/predict``, and whether there was one input only.

    Args:
      inputs: A text, a pair ``[a, b]``, or a list of ``[a]`` and ``[a, b]``.

    Raises:
      RequestError: They are neither.
    """
    if isinstance(inputs, str):
        return [inputs], None, True
    single = [entry for entry in inputs if isinstance(entry, str)]
    if single:
        if len(single) != len(inputs) or len(single) != 2:
            raise RequestError("validation", "inputs must be a text, a pair [a, b], or a list of [a] or [a, b].")
        return [single[0]], [single[1]], True
    sizes = {len(entry) for entry in inputs}
    if sizes - {1, 2} or len(sizes) > 1:
        raise RequestError("validation", "The entries of inputs must all be [a], or all [a, b].")
    return [entry[0] for entry in inputs], [entry[1] for entry in inputs] if sizes == {2} else None, False


def _whole(answer: Any) -> Any:
    return answer


def _first(answer: Any) -> Any:
    return answer[0]


def _first_if(single: bool) -> Callable[[Any], Any]:
    return _first if single else _whole


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What a body asks for.

    Attributes:
      operation: Takes a model and the arguments.
      arguments: The arguments.
      sizes: Numbers of texts, candidates or labels, each of which is limited.
      shape: Makes what the client gets of what the operation answers.
    """

    operation: Callable[..., Work]
    arguments: dict[str, Any]
    sizes: tuple[int, ...]
    shape: Callable[[Any], Any] = _whole

    @property
    def num_inputs(self) -> int:
        """About how many rows it has."""
        return math.prod(self.sizes)


@dataclasses.dataclass(frozen=True, eq=False)
class Endpoint:
    """One thing that a server is asked for.

    Attributes:
      name: Its name in paths.
      summary: What it gives.
      schema: What a body is.
      read: Makes a job of a body.
      suits: What a model must be able to do, where none is named.
      takes_texts: Whether a body may be nothing but ``inputs``, so that a text alone says everything.
    """

    name: str
    summary: str
    schema: type[schemas.Body]
    read: Callable[[Any, Cut], Job]
    suits: Callable[[Served], bool]
    takes_texts: bool = False


def parse(schema: type[BaseModel], value: Any, whole: str = "inputs") -> Any:
    """Returns a value as a schema has it.

    Args:
      schema: The schema.
      value: What JSON says.
      whole: What the value is called in messages.

    Raises:
      RequestError: It does not fit.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RequestError("validation", f"{place or whole}: {first['msg']}.") from error


def _has(function: str) -> Callable[[Served], bool]:
    return lambda served: function in served.subject.functions


def _is(*tasks: str) -> Callable[[Served], bool]:
    return lambda served: served.subject.model.task in tasks


def _labels(served: Served) -> bool:
    return served.subject.model.task in classification.SEQUENCE_TASKS


def _reranks(served: Served) -> bool:
    return _labels(served) and served.subject.model.config.num_labels == 1


def _judges(served: Served) -> bool:
    names = [name.lower() for name in served.subject.model.config.label_names or ()]
    return any(name.startswith("entail") for name in names) or MASKED in served.subject.functions


def _embed(body: schemas.EmbedRequest, cut: Cut) -> Job:
    inputs = as_list(body.inputs)
    options = {"prompt_name": body.prompt_name, "normalize": body.normalize, "dimensions": body.dimensions}
    return Job(embedding.embed, {"inputs": inputs, "truncation": cut(body), **options}, (len(inputs),))


def _embed_all(body: schemas.EmbedTokensRequest, cut: Cut) -> Job:
    inputs = as_list(body.inputs)
    arguments = {"inputs": inputs, "truncation": cut(body), "prompt_name": body.prompt_name}
    return Job(embedding.embed_tokens, arguments, (len(inputs),), lambda found: [row.tolist() for row in found])


def _embed_sparse(body: schemas.EmbedTokensRequest, cut: Cut) -> Job:
    inputs = as_list(body.inputs)
    return Job(embedding.embed_sparse, {"inputs": inputs, "truncation": cut(body)}, (len(inputs),))


def _similarity(body: schemas.SimilarityRequest, cut: Cut) -> Job:
    arguments = {
        "source": body.inputs.source_sentence,
        "sentences": body.inputs.sentences,
        "truncation": cut(body.parameters),
        "prompt_name": body.parameters.prompt_name if body.parameters else None,
    }
    return Job(embedding.similarity, arguments, (len(body.inputs.sentences),))


def _predict(body: schemas.PredictRequest, cut: Cut) -> Job:
    texts, pairs, single = split_pairs(body.inputs)
    arguments = {"texts": texts, "pairs": pairs, "truncation": cut(body), "raw_scores": body.raw_scores}
    return Job(classification.classify, arguments, (len(texts),), _first_if(single))


def _rerank(body: schemas.RerankRequest, cut: Cut) -> Job:
    arguments = {
        "query": body.query,
        "texts": body.texts,
        "truncation": cut(body),
        "raw_scores": body.raw_scores,
        "return_text": body.return_text,
    }
    return Job(classification.rerank, arguments, (len(body.texts),))


def _zero_shot(body: schemas.ZeroShotRequest, cut: Cut) -> Job:
    texts, parameters = as_list(body.inputs), body.parameters
    arguments = {
        "texts": texts,
        "labels": parameters.candidate_labels,
        "truncation": cut(parameters),
        "multi_label": parameters.multi_label,
        "template": parameters.hypothesis_template,
    }
    sizes = (len(texts), len(parameters.candidate_labels))
    return Job(classification.zero_shot, arguments, sizes, _first_if(isinstance(body.inputs, str)))


def _ner(body: schemas.NerRequest, cut: Cut) -> Job:
    texts = as_list(body.inputs)
    return Job(spans.tag, {"texts": texts}, (len(texts),), _first_if(isinstance(body.inputs, str)))


def _qa(body: schemas.QaRequest, cut: Cut) -> Job:
    several = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    parameters = body.parameters or schemas.QaParameters()
    arguments = {
        "questions": [entry.question for entry in several],
        "contexts": [entry.context for entry in several],
        "top_k": parameters.top_k,
        "max_answer_length": parameters.max_answer_len or 0,
        "allow_none": parameters.handle_impossible_answer,
    }
    single, best = not isinstance(body.inputs, list), parameters.top_k == 1

    def shape(answer: Any) -> Any:
        shown = [found[0] for found in answer] if best else answer
        return shown[0] if single else shown

    return Job(spans.answer, arguments, (len(several),), shape)


def _fill_mask(body: schemas.FillMaskRequest, cut: Cut) -> Job:
    texts, parameters = as_list(body.inputs), body.parameters or schemas.FillMaskParameters()
    options = {"top_k": parameters.top_k, "targets": parameters.targets}
    single = isinstance(body.inputs, str)

    def shape(answer: Any) -> Any:
        found = [several[0] if len(several) == 1 else several for several in answer]  # as transformers' pipeline does
        return found[0] if single else found

    return Job(masks.fill_mask, {"texts": texts, "truncation": cut(parameters), **options}, (len(texts),), shape)


EMBED = Endpoint("embed", "Vectors of texts", schemas.EmbedRequest, _embed, _has(VECTORS), True)
EMBED_ALL = Endpoint(
    "embed_all", "A vector for every token", schemas.EmbedTokensRequest, _embed_all, _has(TOKENS), True
)
EMBED_SPARSE = Endpoint(
    "embed_sparse",
    "Weights of the words that texts are about",
    schemas.EmbedTokensRequest,
    _embed_sparse,
    _has(SPARSE),
    True,
)
SIMILARITY = Endpoint(
    "similarity", "Cosines of one text and others", schemas.SimilarityRequest, _similarity, _has(VECTORS)
)
PREDICT = Endpoint("predict", "Labels of texts and pairs", schemas.PredictRequest, _predict, _labels, True)
RERANK = Endpoint("rerank", "Texts in the order in which they answer a query", schemas.RerankRequest, _rerank, _reranks)
ZERO_SHOT = Endpoint("zero-shot", "Labels that the model never saw", schemas.ZeroShotRequest, _zero_shot, _judges)
NER = Endpoint("ner", "Entities in texts", schemas.NerRequest, _ner, _is("token-classification"), True)
QA = Endpoint("qa", "Answers to questions", schemas.QaRequest, _qa, _is("question-answering"))
FILL_MASK = Endpoint("fill-mask", "Words for masks", schemas.FillMaskRequest, _fill_mask, _is(*MASK_TASKS), True)

ENDPOINTS = {
    endpoint.name: endpoint
    for endpoint in (EMBED, EMBED_ALL, EMBED_SPARSE, SIMILARITY, PREDICT, RERANK, ZERO_SHOT, NER, QA, FILL_MASK)
}
"""All of them by name."""
