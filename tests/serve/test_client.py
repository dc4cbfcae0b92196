"""Our own client gives what the models give, in any number of requests, waiting or awaited."""

import asyncio
import inspect

import numpy as np
import pytest

from flaxbert import AsyncClient, Client
from flaxbert.config import AccessConfig
from flaxbert.errors import DataError, ServerError
from flaxbert.retrieval import rerank
from flaxbert.serve.app import make_app
from flaxbert.serve.loading import parse_specs
from tests.serve.conftest import BASE
from tests.serve.running import SMALL, running
from tests.serve.test_routes import TEXTS, close, read_metrics
from tests.serve.test_stream import until
from tests.weights.tiny import write_tiny


class Awaited:
    """An ``AsyncClient`` whose calls are waited for, so that one test is for both."""

    def __init__(self, *arguments, **options):
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name):
        found = getattr(self._client, name)
        if inspect.isasyncgenfunction(found):
            return lambda *arguments: self._each(found(*arguments))
        return lambda *arguments, **options: self._runner.run(found(*arguments, **options))

    def _each(self, answers):
        async def close_answers():
            await answers.aclose()

        try:
            while True:
                yield self._runner.run(_next(answers))
        except StopAsyncIteration:
            return
        finally:
            self._runner.run(close_answers())


async def _next(answers):
    return await anext(answers)


@pytest.fixture(params=[Client, Awaited])
def connect(request, serving):
    opened = []

    def make(**options):
        opened.append(request.param(serving.url, **options))
        return opened[-1]

    yield make
    for client in opened:
        client.__exit__(None, None, None)


def test_vectors_are_those_of_the_model(serving, connect):
    client, model = connect(model="vectors"), serving.models["vectors"]
    found = client.embed(TEXTS)
    assert found.dtype == np.float32
    close(found, model.encode(TEXTS))
    close(client.embed(TEXTS[0]), model.encode(TEXTS[:1]))
    close(client.embed(TEXTS, normalize=False), model.encode(TEXTS, normalize=False))
    close(client.embed(TEXTS, prompt_name="query"), model.encode(TEXTS, prompt_name="query"))
    assert client.embed(TEXTS, dimensions=5).shape == (3, 5)
    assert len(client.embed([])) == 0
    for rows, text in zip(client.embed_tokens(TEXTS), TEXTS, strict=True):
        assert rows.shape == (len(model.tokenizer(text)["input_ids"]), 12)
    close(client.similarity(TEXTS[0], TEXTS[1:]), model.encode(TEXTS[1:]) @ model.encode(TEXTS[0])[0])


def asked_for_info(serving):
    return sum(count for name, count in read_metrics(serving).items() if 'route="/info"' in name and "_total" in name)


def test_large_calls_are_cut_and_their_results_stay_in_order(serving, connect):
    client, before = connect(), asked_for_info(serving)
    texts = [f"{'bad ' * (n % 5)}film{' fine' * (n % 3)}" for n in range(150)]
    assert len(texts) > 4 * serving.app.state.api.limits.max_client_batch_size
    close(client.embed(texts), serving.models["vectors"].encode(texts))
    labels = [row[0]["label"] for row in client.predict(texts)]
    assert labels == [p.label for p in serving.models["film"].predict(texts)]
    assert asked_for_info(serving) == before + 1


def test_labels_pairs_entities_and_answers_are_those_of_the_models(serving, connect):
    client, models = connect(), serving.models
    assert [row[0]["label"] for row in client.predict(TEXTS)] == [p.label for p in models["film"].predict(TEXTS)]
    (pair,) = models["film"].predict([(TEXTS[0], TEXTS[1])])
    (found,) = client.predict([TEXTS[0]], [TEXTS[1]])
    assert found[0]["score"] == pytest.approx(pair.score, abs=1e-5)
    ranked = client.rerank("fine film", TEXTS, return_text=True)
    assert [entry["text"] for entry in ranked] == [e.text for e in rerank(models["ranker"], "fine film", TEXTS)]
    tagged = models["tagger"].predict(TEXTS)
    assert [[e["word"] for e in row] for row in client.entities(TEXTS)] == [
        [e.text for e in t.entities] for t in tagged
    ]
    question, context = "was it bad", "the film was fine . a bad film ."
    (expected,) = models["reader"].predict([question], [context])
    assert client.answer(question, context)[0]["answer"] == expected.text
    assert len(client.answer([question] * 2, [context] * 2, top_k=2)[1]) == 2
    with pytest.raises(DataError, match="2 and 1"):
        client.answer([question] * 2, context)


def test_masks_labels_never_seen_and_tokens(serving, connect):
    client = connect()
    (found,) = client.fill_mask("a [MASK] film", top_k=2)
    logits = serving.models["words"].predict_logits(["a [MASK] film"])[0][2]
    assert [entry["token"] for entry in found] == np.argsort(-logits)[:2].tolist()
    (judged,) = client.zero_shot(TEXTS[0], ["fine", "bad"])
    assert {entry["label"] for entry in judged} == {"fine", "bad"}
    ids = [[token["id"] for token in row] for row in client.tokenize(TEXTS)]
    assert ids == [serving.models["vectors"].tokenizer(text)["input_ids"] for text in TEXTS]
    assert client.decode(ids)[0] == "a fine film."


def test_the_server_says_what_it_is(serving, connect):
    client = connect(model="film")
    assert client.health() is True
    assert client.info()["served_model_name"] == "film"
    assert [model["name"] for model in client.models()] == list(serving.models)


def test_refusals_are_typed(connect):
    client = connect()
    with pytest.raises(ServerError, match="empty") as caught:
        client.embed("")
    assert (caught.value.status, caught.value.error_type) == (422, "Validation")
    assert caught.value.message == str(caught.value)
    with pytest.raises(ServerError) as caught:
        client.embed_sparse("a film")
    assert caught.value.status == 424
    with pytest.raises(ServerError) as caught:
        connect(model="no such").embed("a film")
    assert caught.value.status == 404


def test_streams_send_while_they_read(serving, connect):
    texts = [f"{'bad ' * (n % 5)}film" for n in range(400)]
    taken = []

    def bodies():
        for text in texts:
            taken.append(text)
            yield text

    answers = connect().stream("embed_all", bodies())
    first = next(answers)
    assert first.index == 0
    assert first.error is None
    found = [first, *answers]
    assert [answer.index for answer in found] == list(range(len(texts)))
    assert [len(answer.result[0]) for answer in found] == [text.count(" ") + 3 for text in texts]
    assert taken == texts


def test_bodies_may_be_awaited(serving):
    async def bodies():
        for text in TEXTS:
            await asyncio.sleep(0.01)
            yield text

    async def run():
        async with AsyncClient(serving.url) as client:
            return [answer.result[0] async for answer in client.stream("embed", bodies())]

    close(asyncio.run(run()), serving.models["vectors"].encode(TEXTS))


def test_bad_bodies_of_a_stream_fail_alone_and_a_stream_that_can_not_be_raises(connect):
    answers = list(connect().stream("embed", ["film", {"inputs": 3}, "bad"]))
    assert [answer.error.status if answer.error else None for answer in answers] == [None, 422, None]
    assert answers[1].result is None
    with pytest.raises(ServerError, match="'embed'") as caught:
        list(connect().stream("embedd", ["film"]))
    assert caught.value.status == 404


def test_what_the_bodies_raise_is_raised(connect):
    def bodies():
        yield "film"
        raise ConnectionError("the source of the texts is gone")

    with pytest.raises(ConnectionError, match="source"):
        list(connect().stream("embed", bodies()))


def test_a_stream_without_an_end_is_answered_and_ends_on_the_server_when_it_is_left(serving, connect):
    def bodies():
        while True:
            yield "film"

    answers = connect().stream("predict", bodies())
    assert [next(answers).index for _ in range(40)] == list(range(40))
    answers.close()
    until(lambda: serving.app.state.api.service.num_requests == 0)


@pytest.mark.parametrize("make", [Client, Awaited])
def test_keys_are_sent(tmp_path, make):
    keys = tmp_path / "keys"
    keys.write_text("right\n")
    keys.chmod(0o600)
    specs = parse_specs((str(write_tiny(tmp_path / "film", config=BASE)),))
    with running(make_app(specs, engine=SMALL, access=AccessConfig(api_keys_file=str(keys)))) as url:
        with make(url, api_key="right") as client:
            assert client.predict("a film")
            assert next(iter(client.stream("predict", ["a film"]))).result
        with make(url, api_key="wrong") as client:
            for ask in (
                lambda: client.predict("a film"),
                lambda: list(client.stream("predict", ["a film"])),
                client.health,
            ):
                with pytest.raises(ServerError) as caught:
                    ask()
                assert caught.value.status == 401
