"""Servers to compare with: other libraries behind the same ASGI server, computing together what arrived together.

    python -m benchmarks.serving_peers sentence-transformers MODEL PORT

Batching is what one would write in an afternoon: requests go into a queue; a thread takes what waits, at most 32 texts, and calls the library.
"""

import argparse
import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

MOST_TEXTS = 32


def sentence_transformers(folder: str, dtype: str) -> Callable[[Sequence[str]], list[Any]]:
    """Returns a function that makes vectors, as sentence-transformers does.

    Args:
      folder: The model.
      dtype: Type of weights and activations, by torch's name.
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype})

    def encode(texts: Sequence[str]) -> list[Any]:
        return list(
            model.encode(list(texts), batch_size=MOST_TEXTS, show_progress_bar=False, normalize_embeddings=True)
        )

    return encode


def transformers_pipeline(folder: str, dtype: str) -> Callable[[Sequence[str]], list[Any]]:
    """Returns a function that labels texts, as transformers' pipeline does.

    Args:
      folder: The model.
      dtype: Type of weights and activations, by torch's name.
    """
    from transformers import pipeline

    pipe = pipeline("text-classification", model=folder, top_k=None, device="cpu", truncation=True, dtype=dtype)
    return lambda texts: pipe(list(texts), batch_size=MOST_TEXTS)


LIBRARIES = {"sentence-transformers": sentence_transformers, "transformers": transformers_pipeline}


class Batcher:
    """A queue and a thread.

    Args:
      compute: Takes texts and returns as many answers.
    """

    def __init__(self, compute: Callable[[Sequence[str]], list[Any]]) -> None:
        self._compute = compute
        self._waiting: queue.Queue[tuple[str, asyncio.Future[Any], asyncio.AbstractEventLoop]] = queue.Queue()
        threading.Thread(target=self._loop, daemon=True).start()

    def _loop(self) -> None:
        while True:
            taken = [self._waiting.get()]
            while len(taken) < MOST_TEXTS and not self._waiting.empty():
                taken.append(self._waiting.get())
            answers = self._compute([text for text, _, _ in taken])
            for (_, future, loop), answer in zip(taken, answers, strict=True):
                loop.call_soon_threadsafe(future.set_result, answer)

    async def __call__(self, text: str) -> Any:
        """Returns the answer for a text.

        Args:
          text: The text.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.put((text, future, loop))
        return await future


def main() -> None:
    """Serves until it is killed."""
    import orjson
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import Response

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    batcher = Batcher(LIBRARIES[arguments.library](arguments.model, arguments.dtype))
    app = FastAPI()

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.post("/embed")
    @app.post("/predict")
    async def answer(request: Request) -> Response:
        found = await batcher(orjson.loads(await request.body())["inputs"])
        content = orjson.dumps([found], option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning", loop="uvloop", http="httptools")


if __name__ == "__main__":
    main()
