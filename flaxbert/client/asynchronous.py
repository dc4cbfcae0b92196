"""The client that is awaited."""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx2
import numpy as np
import tenacity

from flaxbert.client import calls
from flaxbert.client.attempts import policy, read_json, unreachable
from flaxbert.client.blocking import NUM_IN_FLIGHT
from flaxbert.client.calls import Batch, Call, Labels, Texts, same
from flaxbert.client.conversation import AsyncTalk, Conversation, StreamAnswer, connect_async
from flaxbert.errors import ServerError

T = TypeVar("T")


class AsyncClient:
    """Asks a server that ``flaxbert serve`` runs, as ``Client`` does; for asyncio.

    Args:
      base_url: As for ``Client``.
      api_key: As for ``Client``.
      model: As for ``Client``.
      timeout_seconds: As for ``Client``.
      retries: As for ``Client``.
      ssl_context: As for ``Client``.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8080",
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_seconds: float = 60.0,
        retries: int = 4,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = ssl_context or httpx2.create_ssl_context()
        self._http = httpx2.AsyncClient(**calls.connection_options(base_url, api_key, self._tls))
        self._prefix = calls.prefix_of(model)
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._batch_size = 0

    async def __aenter__(self) -> "AsyncClient":  # noqa: PYI034 - beartype can not check Self here
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def embed(
        self,
        texts: Texts,
        *,
        prompt_name: str | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        truncate: bool | None = None,
    ) -> np.ndarray:
        """Returns vectors of texts.

        Args:
          texts: One text or several; large calls are cut into requests that the server takes.
          prompt_name: Name of a prompt of the model's folder.
          normalize: Whether vectors get length 1.
          dimensions: First entries to keep of each vector; None keeps all.
          truncate: Whether texts that are too long are cut instead of refused; None: as the server was told.

        Returns:
          float32 ``[texts, entries]``.
        """
        options = {"prompt_name": prompt_name, "normalize": normalize, "dimensions": dimensions, "truncate": truncate}
        return await self._ask_batch(calls.embed(texts, **options))

    async def embed_tokens(
        self, texts: Texts, *, prompt_name: str | None = None, truncate: bool | None = None
    ) -> list[np.ndarray]:
        """Returns a vector for each token, special tokens included.

        Args:
          texts: As for ``embed``.
          prompt_name: As for ``embed``.
          truncate: As for ``embed``.

        Returns:
          float32 ``[tokens, entries]`` for each text.
        """
        return await self._ask_batch(calls.embed_tokens(texts, prompt_name=prompt_name, truncate=truncate))

    async def embed_sparse(self, texts: Texts, *, truncate: bool | None = None) -> list[dict[int, float]]:
        """Returns weights of the words that texts are about.

        Args:
          texts: As for ``embed``.
          truncate: As for ``embed``.

        Returns:
          For each text, the weights by token id.
        """
        return await self._ask_batch(calls.embed_sparse(texts, truncate=truncate))

    async def predict(
        self, texts: Texts, pairs: Texts | None = None, *, raw_scores: bool = False, truncate: bool | None = None
    ) -> list[Labels]:
        """Returns labels of texts, or of pairs.

        Args:
          texts: As for ``embed``.
          pairs: Second texts, or None.
          raw_scores: Whether scores are logits instead of probabilities.
          truncate: As for ``embed``.

        Returns:
          For each text ``{"label", "score"}``, best first.
        """
        return await self._ask_batch(calls.predict(texts, pairs, raw_scores=raw_scores, truncate=truncate))

    async def rerank(
        self,
        query: str,
        texts: Texts,
        *,
        raw_scores: bool = False,
        return_text: bool = False,
        truncate: bool | None = None,
    ) -> Labels:
        """Returns texts in the order in which they answer a query.

        Args:
          query: The query.
          texts: As many as one request may have.
          raw_scores: Whether scores are logits.
          return_text: Whether the answer repeats the texts.
          truncate: As for ``embed``.

        Returns:
          ``{"index", "score"}``, best first.
        """
        options = {"raw_scores": raw_scores, "return_text": return_text, "truncate": truncate}
        return await self._ask(calls.rerank(self._prefix, query, texts, **options))

    async def similarity(
        self, text: str, others: Texts, *, prompt_name: str | None = None, truncate: bool | None = None
    ) -> np.ndarray:
        """Returns cosines of one text and others.

        Args:
          text: The one.
          others: As many as one request may have.
          prompt_name: As for ``embed``.
          truncate: As for ``embed``.

        Returns:
          float32 ``[others]``.
        """
        parameters = {"prompt_name": prompt_name, "truncate": truncate}
        return await self._ask(calls.similarity(self._prefix, text, others, **parameters))

    async def entities(self, texts: Texts) -> list[Labels]:
        """Returns entities in texts.

        Args:
          texts: As for ``embed``.

        Returns:
          For each text ``{"entity_group", "word", "start", "end", "score"}``.
        """
        return await self._ask_batch(calls.entities(texts))

    async def answer(
        self,
        questions: Texts,
        contexts: Texts,
        *,
        top_k: int = 1,
        max_answer_len: int | None = None,
        handle_impossible_answer: bool = True,
    ) -> list[Any]:
        """Returns answers to questions.

        Args:
          questions: One question or several.
          contexts: The text of each question.
          top_k: Answers of each question.
          max_answer_len: Most tokens of an answer.
          handle_impossible_answer: Whether there may be no answer.

        Returns:
          For each question ``{"answer", "score", "start", "end"}``, or a list of these where ``top_k`` is above 1.
        """
        parameters = {"max_answer_len": max_answer_len, "handle_impossible_answer": handle_impossible_answer}
        return await self._ask_batch(calls.answer(questions, contexts, top_k=top_k, **parameters))

    async def fill_mask(
        self, texts: Texts, *, top_k: int = 5, targets: Sequence[str] | None = None, truncate: bool | None = None
    ) -> list[Any]:
        """Returns words for the masks of texts.

        Args:
          texts: As for ``embed``.
          top_k: Words of each mask.
          targets: The only words that may be shown.
          truncate: As for ``embed``.

        Returns:
          For each text ``{"token_str", "score", "token", "sequence"}``, best first; a list of these where it has several masks.
        """
        words = None if targets is None else list(targets)
        return await self._ask_batch(calls.fill_mask(texts, top_k=top_k, targets=words, truncate=truncate))

    async def zero_shot(
        self,
        texts: Texts,
        labels: Sequence[str],
        *,
        multi_label: bool = False,
        hypothesis_template: str | None = None,
        truncate: bool | None = None,
    ) -> list[Labels]:
        """Returns how well labels that the model never saw fit texts.

        Args:
          texts: As for ``embed``.
          labels: The labels, in words.
          multi_label: Whether each label is judged alone.
          hypothesis_template: Sentence with ``{}`` where the label stands.
          truncate: As for ``embed``.

        Returns:
          For each text ``{"label", "score"}``, best first.
        """
        parameters = {"multi_label": multi_label, "hypothesis_template": hypothesis_template, "truncate": truncate}
        return await self._ask_batch(calls.zero_shot(texts, labels, **parameters))

    async def tokenize(
        self, texts: Texts, *, add_special_tokens: bool = True, prompt_name: str | None = None
    ) -> list[Labels]:
        """Returns the tokens of texts.

        Args:
          texts: As for ``embed``.
          add_special_tokens: Whether special tokens are added.
          prompt_name: As for ``embed``.

        Returns:
          For each text ``{"id", "text", "special", "start", "stop"}``.
        """
        options = {"add_special_tokens": add_special_tokens, "prompt_name": prompt_name}
        return await self._ask_batch(calls.tokenize(texts, **options))

    async def decode(self, ids: Iterable[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """Returns texts of token ids.

        Args:
          ids: Token ids of each text.
          skip_special_tokens: Whether special tokens are left out.
        """
        return await self._ask_batch(calls.decode(ids, skip_special_tokens=skip_special_tokens))

    async def info(self) -> dict[str, Any]:
        """Returns what the model is and what the server takes."""
        return await self._ask(Call(f"{self._prefix}/info", None, same))

    async def models(self) -> list[dict[str, Any]]:
        """Returns the served models and their versions."""
        return await self._ask(Call("/models", None, calls.served_models))

    async def health(self) -> bool:
        """Returns whether the server takes requests now; it is asked once."""
        try:
            await self._attempt(Call("/health", None, same), None, time.monotonic() + self._timeout_seconds)
        except (httpx2.TransportError, TimeoutError):
            return False
        except ServerError as error:
            if error.status == 503:
                return False
            raise
        return True

    async def stream(
        self, operation: str, bodies: Iterable[Any] | AsyncIterable[Any]
    ) -> AsyncGenerator[StreamAnswer, None]:
        """Sends any number of bodies in one request and yields their answers in order, while it sends.

        Args:
          operation: As for ``Client.stream``.
          bodies: As for ``Client.stream``; may be awaited.

        Yields:
          An answer for each body, with a result or an error of its own.

        Raises:
          ServerError: The server refused or ended the stream, or went away.
        """
        request = self._http.build_request("POST", f"{self._prefix}/stream/{operation}", headers=calls.STREAM_HEADERS)
        try:
            attempts = tenacity.AsyncRetrying(**policy(self._retries, self._timeout_seconds))
            reader, writer = await attempts(connect_async, request, self._timeout_seconds, self._tls)
        except OSError as error:
            raise unreachable(error) from error
        talk = AsyncTalk(reader, writer, Conversation(request), self._timeout_seconds)
        async with contextlib.aclosing(talk.answers(bodies)) as answers:
            async for answer in answers:
                yield answer

    async def _ask(self, call: Call[T]) -> T:
        content = None if call.body is None else json.dumps(call.body).encode()
        deadline = time.monotonic() + self._timeout_seconds
        attempts = tenacity.AsyncRetrying(**policy(self._retries, self._timeout_seconds))
        try:
            return call.read(await attempts(self._attempt, call, content, deadline))
        except (httpx2.TransportError, TimeoutError) as error:
            raise unreachable(error) from error

    async def _attempt(self, call: Call[Any], content: bytes | None, deadline: float) -> Any:
        method = "GET" if content is None else "POST"
        left = max(calls.LEAST_SECONDS, deadline - time.monotonic())
        async with asyncio.timeout(left):
            response = await self._http.request(method, call.path, content=content, timeout=left)
        return read_json(response.status_code, response.headers, response.content)

    async def _ask_batch(self, batch: Batch[T]) -> T:
        if len(batch.inputs) > 1 and not self._batch_size:
            self._batch_size = int((await self.info())["max_client_batch_size"])
        room = asyncio.Semaphore(NUM_IN_FLIGHT)

        async def one(call: Call[Any]) -> Any:
            async with room:
                return await self._ask(call)

        tasks = [asyncio.ensure_future(one(part)) for part in batch.cut(self._prefix, self._batch_size or 1)]
        try:
            return batch.join(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
