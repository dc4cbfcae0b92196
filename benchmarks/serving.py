"""Requests a second and their times, of flaxbert's server and of others, for texts of mixed lengths from a second process.

    python -m benchmarks.serving --model MiniLM --rounds 5
    python -m benchmarks.serving --engines openvino --precision bfloat16
    python -m benchmarks.serving --model base --task predict --clients 1 8 --seconds 10

Every server is started once; then they get their turns, A B C A B C…, each of ``--seconds`` with every number of clients. A client sends one text, waits for
the answer and sends the next. Half of the texts are sentences of SST-2, half reviews of IMDB cut to 2,000 characters. Answers are compared with those of
``Model.encode`` or ``Model.predict``. "Equal p99" is the throughput at the largest number of clients at which the 99th percentile of
times is not above that of the best peer at its best.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.models import model_folder
from benchmarks.runner import machine, write_json
from benchmarks.settings import root

FIRST_PORT = 18_300
MOST_CHARACTERS = 2_000
TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2}
"""Largest difference of an answer from the model's own in float32."""


@dataclasses.dataclass
class Result:
    """One turn of one server.

    Attributes:
      requests: Requests that were answered.
      seconds: How long it took.
      times: Seconds of every request.
      wrong: Answers that were not those of the model.
      failed: Requests with another status than 200.
    """

    requests: int
    seconds: float
    times: list[float]
    wrong: int
    failed: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    def percentile(self, percent: float) -> float:
        """Returns a percentile of the times, in milliseconds.

        Args:
          percent: 0 to 100.
        """
        return 1000.0 * float(np.percentile(self.times, percent)) if self.times else float("nan")


def texts(count: int) -> list[str]:
    """Returns sentences and reviews in turn, the same every time.

    Args:
      count: How many.
    """
    data = pathlib.Path(os.environ["FLAXBERT_TEST_DATA"])
    with (data / "sst2" / "dev.tsv").open(encoding="utf-8") as file:
        sentences = [line.split("\t")[0] for line in file][1:]
    with gzip.open(data / "imdb" / "train_5k.jsonl.gz", "rt", encoding="utf-8") as file:
        reviews = [json.loads(line)["text"][:MOST_CHARACTERS] for line in itertools.islice(file, count)]
    mixed = [text for pair in zip(sentences, reviews, strict=False) for text in pair]
    return mixed[:count]


class Server:
    """A process that answers.

    Args:
      name: Name in the table.
      words: What starts it; ``{port}`` is replaced.
      port: Its port.
      path: Route.
      compared: Whether its answers are compared.
    """

    tolerance = TOLERANCES["float32"]

    def __init__(self, name: str, words: Sequence[str], port: int, path: str, compared: bool) -> None:
        self.name = name
        self.port = port
        self.path = path
        self.compared = compared
        self.process = subprocess.Popen(
            [word.replace("{port}", str(port)) for word in words], cwd=root(), stderr=subprocess.PIPE, text=True
        )

    def wait(self) -> float:
        """Returns the seconds until it is ready.

        Raises:
          RuntimeError: It ended.
        """
        begun = time.monotonic()
        while True:
            if self.process.poll() is not None:
                errors = self.process.stderr.read() if self.process.stderr else ""
                raise RuntimeError(f"{self.name} ended: {errors[-500:]}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return time.monotonic() - begun
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)

    def close(self) -> None:
        """Ends it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


async def _client(
    session: Any,
    server: Server,
    bodies: Sequence[bytes],
    expected: np.ndarray | None,
    start: int,
    end: float,
    result: Result,
) -> None:
    place, url = start, f"http://127.0.0.1:{server.port}{server.path}"
    headers = {"content-type": "application/json"}
    while time.perf_counter() < end:
        number = place % len(bodies)
        place += 7
        begun = time.perf_counter()
        async with session.post(url, data=bodies[number], headers=headers) as response:
            content = await response.read()
        result.times.append(time.perf_counter() - begun)
        if response.status != 200:
            result.failed += 1
            continue
        result.requests += 1
        if expected is not None and server.compared:
            result.wrong += int(_differs(json.loads(content), expected[number]))


def _differs(answer: Any, expected: np.ndarray) -> bool:
    if isinstance(answer[0], dict):
        scores = {entry["label"]: entry["score"] for entry in answer}
        found = np.asarray([scores[name] for name in sorted(scores)])
    else:
        found = np.asarray(answer[0])
    return bool(np.abs(found - expected).max() > Server.tolerance)


async def _turn(
    server: Server, bodies: Sequence[bytes], expected: np.ndarray | None, clients: int, seconds: float
) -> Result:
    import aiohttp

    result = Result(0, seconds, [], 0, 0)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:
        begun = time.perf_counter()
        starts = [number * 13 for number in range(clients)]
        end = begun + seconds
        await asyncio.gather(*(_client(session, server, bodies, expected, start, end, result) for start in starts))
        result.seconds = time.perf_counter() - begun
    return result


def expected_answers(folder: str, task: str, chosen: Sequence[str]) -> np.ndarray:
    """Returns what the model itself says, one row a text: a vector, or the scores of the labels in the order of their names.

    Args:
      folder: The model.
      task: ``embed`` or ``predict``.
      chosen: The texts.
    """
    import warnings

    import flaxbert

    model = flaxbert.load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if task == "embed":
            return model.encode(list(chosen), normalize=True)
        return np.asarray([[p.scores[name] for name in sorted(p.scores)] for p in model.predict(list(chosen))])


def serve_words(folder: str, engine: str, precision: str = "float32") -> list[str]:
    """Returns the command that serves a model on ``{port}`` as benchmarks ask it: long texts cut, no line a request.

    Args:
      folder: The model.
      engine: Name of the engine.
      precision: float32 or bfloat16.
    """
    words = [sys.executable, "-m", "flaxbert", "serve", f"model={folder}", "--port", "{port}", "--engine", engine]
    return [*words, "--precision", precision, "--limits.auto_truncate", "true", "--log_requests", "false"]


def servers_of(arguments: argparse.Namespace, folder: str) -> list[tuple[str, list[str], bool]]:
    """Returns names, commands and whether answers are compared, of all servers.

    Args:
      arguments: Options of the program.
      folder: The model.
    """
    found = [
        (f"flaxbert, {engine}", serve_words(folder, engine, arguments.precision), True) for engine in arguments.engines
    ]
    library = "sentence-transformers" if arguments.task == "embed" else "transformers"
    peer = [sys.executable, "-m", "benchmarks.serving_peers", library, folder, "{port}", "--dtype", arguments.precision]
    found.append((library, peer, arguments.task == "embed"))
    if arguments.infinity and arguments.task == "embed":
        words = [arguments.infinity, "v2", "--model-id", folder, "--port", "{port}", "--device", "cpu"]
        words += ["--engine", "torch", "--dtype", arguments.precision, "--no-bettertransformer"]
        words += ["--url-prefix", "", "--served-model-name", "model"]
        found.append(("infinity", words, False))
    return found


@contextlib.contextmanager
def started(arguments: argparse.Namespace, folder: str) -> Iterator[list[Server]]:
    """Starts all servers, one after the other, and ends them.

    Args:
      arguments: Options of the program.
      folder: The model.

    Yields:
      The servers.
    """
    servers: list[Server] = []
    try:
        for place, (name, words, compared) in enumerate(servers_of(arguments, folder)):
            path = "/embeddings" if name == "infinity" else f"/{arguments.task}"
            servers.append(Server(name, words, FIRST_PORT + place, path, compared))
            print(f"{name}: ready after {servers[-1].wait():.1f} s", flush=True)
        yield servers
    finally:
        for server in servers:
            server.close()


def bodies_of(server: Server, chosen: Sequence[str]) -> list[bytes]:
    """Returns the bodies of requests, in the form that a server takes.

    Args:
      server: The server.
      chosen: The texts.
    """
    if server.name == "infinity":
        return [json.dumps({"input": [text], "model": "model"}).encode() for text in chosen]
    return [json.dumps({"inputs": text}).encode() for text in chosen]


def table(results: dict[tuple[str, int], list[Result]], names: Sequence[str], clients: Sequence[int]) -> list[str]:
    """Returns the lines of the table: medians of the rounds.

    Args:
      results: By server and number of clients.
      names: The servers.
      clients: The numbers.
    """
    lines = [
        f"{'server':<28}{'clients':>8}{'requests/s':>12}{'min–max':>16}{'p50 ms':>9}{'p99 ms':>9}{'wrong':>7}{'failed':>8}"
    ]
    for count in clients:
        for name in names:
            rounds = results[name, count]
            rates = [result.rate for result in rounds]
            span = f"{min(rates):.1f}–{max(rates):.1f}"
            p50, p99 = (statistics.median(result.percentile(p) for result in rounds) for p in (50, 99))
            wrong, failed = (sum(getattr(result, key) for result in rounds) for key in ("wrong", "failed"))
            lines.append(
                f"{name:<28}{count:>8}{statistics.median(rates):>12.1f}{span:>16}{p50:>9.1f}{p99:>9.1f}{wrong:>7}{failed:>8}"
            )
    return lines


def at_equal_p99(
    results: dict[tuple[str, int], list[Result]], names: Sequence[str], clients: Sequence[int]
) -> list[str]:
    """Returns, for each of flaxbert's servers, its throughput beside that of the best peer where its p99 is not above the peer's.

    Args:
      results: By server and number of clients.
      names: The servers.
      clients: The numbers.
    """
    middle = lambda name, count, what: statistics.median(what(result) for result in results[name, count])
    peers = [name for name in names if not name.startswith("flaxbert")]
    rated = [(middle(name, count, lambda r: r.rate), name, count) for name in peers for count in clients]
    best_rate, best, best_clients = max(rated)
    bound = middle(best, best_clients, lambda r: r.percentile(99))
    lines = [f"best peer: {best}, {best_rate:.1f} requests/s with {best_clients} clients, p99 {bound:.0f} ms"]
    for name in names:
        if name in peers:
            continue
        allowed = [count for count in clients if middle(name, count, lambda r: r.percentile(99)) <= bound]
        if allowed:
            rate, count = max((middle(name, count, lambda r: r.rate), count) for count in allowed)
            lines.append(
                f"{name}: {rate:.1f} requests/s with {count} clients at no larger p99, {rate / best_rate:.2f} times the best peer"
            )
        else:
            lines.append(f"{name}: no number of clients has so small a p99")
    return lines


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="MiniLM", help="MiniLM, base, or a folder")
    parser.add_argument("--task", choices=("embed", "predict"), default="embed")
    parser.add_argument("--precision", choices=tuple(TOLERANCES), default="float32", help="of all servers")
    parser.add_argument("--engines", nargs="+", default=["jax"], help="engines of flaxbert")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest difference of a right answer; 0: that of the precision"
    )
    parser.add_argument("--infinity", default="", help="program infinity_emb, of an environment of its own")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    Server.tolerance = arguments.tolerance or TOLERANCES[arguments.precision]
    chosen = texts(arguments.texts)
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(arguments.model, pathlib.Path(scratch), arguments.task)
        expected = expected_answers(folder, arguments.task, chosen)
        results: dict[tuple[str, int], list[Result]] = {}
        with started(arguments, folder) as servers:
            bodies = {server.name: bodies_of(server, chosen) for server in servers}
            for number in range(arguments.rounds + 1):  # the first round warms up
                for count in arguments.clients:
                    for server in servers:
                        seconds = arguments.seconds if number else min(3.0, arguments.seconds)
                        turn = asyncio.run(_turn(server, bodies[server.name], expected, count, seconds))
                        if number:
                            results.setdefault((server.name, count), []).append(turn)
                            told = f"round {number} of {arguments.rounds}, {count} clients"
                            print(f"{told}: {server.name} {turn.rate:.1f} requests/s", flush=True)
            names = [server.name for server in servers]
    lines = [*table(results, names, arguments.clients), "", *at_equal_p99(results, names, arguments.clients)]
    print("\n".join(lines))
    if arguments.json:
        rows = [
            {"server": name, "clients": count, "rates": [r.rate for r in rounds], "p50_ms": [r.percentile(50) for r in rounds],
             "p99_ms": [r.percentile(99) for r in rounds], "wrong": sum(r.wrong for r in rounds), "failed": sum(r.failed for r in rounds)}
            for (name, count), rounds in results.items()
        ]  # fmt: skip
        write_json(arguments.json, {"machine": machine(), "options": vars(arguments), "rows": rows})


if __name__ == "__main__":
    main()
