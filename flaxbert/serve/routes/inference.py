"""Routes of text-embeddings-inference, and those that it lacks: entities, answers, masks, zero-shot labels."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from flaxbert.serve import schemas
from flaxbert.serve.api import Api
from flaxbert.serve.errors import RequestError
from flaxbert.serve.functions import MASK_TASKS, MASKED, SPARSE, TOKENS, VECTORS
from flaxbert.serve.loading import Served
from flaxbert.serve.operations import classification, embedding, masks, spans, text
from flaxbert.serve.strict_json import StrictRoute
from flaxbert.weights.sentence_transformers import SentencePooling


def as_list(inputs: Any) -> list[Any]:
    """Returns one text or one list of ids as a list of one.

    Args:
      inputs: Texts or ids, one or several.
    """
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
        return [inputs]
    return list(inputs)


def _has(function: str) -> Any:
    return lambda served: function in served.subject.functions


def _is(*tasks: str) -> Any:
    return lambda served: served.subject.model.task in tasks


def _labels(served: Served) -> bool:
    return served.subject.model.task in classification.SEQUENCE_TASKS


def _reranks(served: Served) -> bool:
    return _labels(served) and served.subject.model.config.num_labels == 1


def _judges(served: Served) -> bool:
    names = [name.lower() for name in served.subject.model.config.label_names or ()]
    return any(name.startswith("entail") for name in names) or MASKED in served.subject.functions


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


def add_vectors(router: APIRouter, api: Api) -> None:
    """Adds the routes that make vectors.

    Args:
      router: Where they go.
      api: What they have at hand.
    """

    async def vectors(request: Request, body: Any, operation: Any, function: str, **arguments: Any) -> Any:
        inputs = as_list(body.inputs)
        api.check_batch(len(inputs))
        return await api.run(
            request, operation, suits=_has(function), inputs=inputs, truncation=api.truncation(body), **arguments
        )

    @router.post("/embed", summary="Vectors of texts")
    async def embed(body: schemas.EmbedRequest, request: Request) -> Response:
        options = {"prompt_name": body.prompt_name, "normalize": body.normalize, "dimensions": body.dimensions}
        return api.send(request, await vectors(request, body, embedding.embed, VECTORS, **options))

    @router.post("/embed_all", summary="A vector for every token")
    async def embed_all(body: schemas.EmbedTokensRequest, request: Request) -> Response:
        found = await vectors(request, body, embedding.embed_tokens, TOKENS, prompt_name=body.prompt_name)
        return api.send(request, [row.tolist() for row in found])

    @router.post("/embed_sparse", summary="Weights of the words that texts are about")
    async def embed_sparse(body: schemas.EmbedTokensRequest, request: Request) -> Response:
        return api.send(request, await vectors(request, body, embedding.embed_sparse, SPARSE))

    @router.post("/similarity", summary="Cosines of one text and others")
    async def similarity(body: schemas.SimilarityRequest, request: Request) -> Response:
        api.check_batch(len(body.inputs.sentences))
        answer = await api.run(
            request,
            embedding.similarity,
            suits=_has(VECTORS),
            source=body.inputs.source_sentence,
            sentences=body.inputs.sentences,
            truncation=api.truncation(body.parameters),
            prompt_name=body.parameters.prompt_name if body.parameters else None,
        )
        return api.send(request, answer)


def add_labels(router: APIRouter, api: Api) -> None:
    """Adds the routes that label and score texts.

    Args:
      router: Where they go.
      api: What they have at hand.
    """

    @router.post("/predict", summary="Labels of texts and pairs")
    async def predict(body: schemas.PredictRequest, request: Request) -> Response:
        texts, pairs, single = split_pairs(body.inputs)
        api.check_batch(len(texts))
        options = {"texts": texts, "pairs": pairs, "truncation": api.truncation(body), "raw_scores": body.raw_scores}
        answer = await api.run(request, classification.classify, suits=_labels, **options)
        return api.send(request, answer[0] if single else answer)

    @router.post("/rerank", summary="Texts in the order in which they answer a query")
    async def rerank(body: schemas.RerankRequest, request: Request) -> Response:
        api.check_batch(len(body.texts))
        options = {
            "query": body.query,
            "texts": body.texts,
            "truncation": api.truncation(body),
            "raw_scores": body.raw_scores,
            "return_text": body.return_text,
        }
        return api.send(request, await api.run(request, classification.rerank, suits=_reranks, **options))

    @router.post("/zero-shot", summary="Labels that the model never saw")
    async def zero_shot(body: schemas.ZeroShotRequest, request: Request) -> Response:
        texts, parameters = as_list(body.inputs), body.parameters
        api.check_batch(len(texts))
        api.check_batch(len(parameters.candidate_labels))
        answer = await api.run(
            request,
            classification.zero_shot,
            suits=_judges,
            texts=texts,
            labels=parameters.candidate_labels,
            truncation=api.truncation(parameters),
            multi_label=parameters.multi_label,
            template=parameters.hypothesis_template,
        )
        return api.send(request, answer[0] if isinstance(body.inputs, str) else answer)


def add_spans(router: APIRouter, api: Api) -> None:
    """Adds the routes that find parts of texts and fill masks.

    Args:
      router: Where they go.
      api: What they have at hand.
    """

    @router.post("/ner", summary="Entities in texts")
    async def ner(body: schemas.NerRequest, request: Request) -> Response:
        texts = as_list(body.inputs)
        api.check_batch(len(texts))
        answer = await api.run(request, spans.tag, suits=_is("token-classification"), texts=texts)
        return api.send(request, answer[0] if isinstance(body.inputs, str) else answer)

    @router.post("/qa", summary="Answers to questions")
    async def qa(body: schemas.QaRequest, request: Request) -> Response:
        several = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        parameters = body.parameters or schemas.QaParameters()
        api.check_batch(len(several))
        answer = await api.run(
            request,
            spans.answer,
            suits=_is("question-answering"),
            questions=[entry.question for entry in several],
            contexts=[entry.context for entry in several],
            top_k=parameters.top_k,
            max_answer_length=parameters.max_answer_len or 0,
            allow_none=parameters.handle_impossible_answer,
        )
        if parameters.top_k == 1:
            answer = [found[0] for found in answer]
        return api.send(request, answer if isinstance(body.inputs, list) else answer[0])

    @router.post("/fill-mask", summary="Words for masks")
    async def fill_mask(body: schemas.FillMaskRequest, request: Request) -> Response:
        texts, parameters = as_list(body.inputs), body.parameters or schemas.FillMaskParameters()
        api.check_batch(len(texts))
        answer = await api.run(
            request,
            masks.fill_mask,
            suits=_is(*MASK_TASKS),
            texts=texts,
            truncation=api.truncation(parameters),
            top_k=parameters.top_k,
            targets=parameters.targets,
        )
        found = [several[0] if len(several) == 1 else several for several in answer]  # as transformers' pipeline does
        return api.send(request, found[0] if isinstance(body.inputs, str) else found)


def add_tokens(router: APIRouter, api: Api) -> None:
    """Adds the routes that only read and write tokens.

    Args:
      router: Where they go.
      api: What they have at hand.
    """

    @router.post("/tokenize", summary="Tokens of texts")
    async def tokenize(body: schemas.TokenizeRequest, request: Request) -> Response:
        texts = as_list(body.inputs)
        api.check_batch(len(texts))
        subject = api.served(request).subject
        pooling = subject.model.pooling or SentencePooling()
        try:
            lead = pooling.find_prompt(body.prompt_name)
        except ValueError as error:
            raise RequestError("validation", str(error)) from error
        special = body.add_special_tokens

        def work() -> Any:
            return text.tokenize_texts(subject, texts, add_special_tokens=special, lead=lead)

        return api.send(request, await api.service.in_thread(work))

    @router.post("/decode", summary="Texts of tokens")
    async def decode(body: schemas.DecodeRequest, request: Request) -> Response:
        ids = as_list(body.ids)
        api.check_batch(len(ids))
        subject, skip = api.served(request).subject, body.skip_special_tokens

        def work() -> Any:
            return text.decode_ids(subject, ids, skip_special_tokens=skip)

        return api.send(request, await api.service.in_thread(work))


def make_router(api: Api) -> APIRouter:
    """Returns these routes.

    Args:
      api: What they have at hand.
    """
    router = APIRouter(route_class=StrictRoute, tags=["inference"])
    for add in (add_vectors, add_labels, add_spans, add_tokens):
        add(router, api)
    return router
