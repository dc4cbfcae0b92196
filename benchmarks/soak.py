"""Mixed load with abuse on one server: swaps, rollbacks and a killed worker, and every answer compared. Ends with code 1 where a promise is broken.

    python -m benchmarks.soak --minutes 30            # 20 swaps and rollbacks
    python -m benchmarks.soak --minutes 2 --swaps 6   # the short form

Promises: no wrong answer; no status of 500 or above but 503 and 504; connections are only lost where the worker was killed; and the memory of the worker does
not grow by more than 2 % from a fifth of its time on (in the short form 10 %, since it hardly comes to rest). Models are small, with random weights.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import numpy as np
import psutil

from benchmarks import attacks
from benchmarks.runner import machine, write_json
from benchmarks.settings import root

PORT = 18_400
ADMIN_KEY = "soak-administrator"
TOLERANCE = 2e-5
MOST_GROWTH, MOST_GROWTH_SHORT = 0.02, 0.10
SENTENCE = "the film was fine but its end came too late for a story that had begun so well and then lost all of its way"
WORDS = SENTENCE.split()


@dataclasses.dataclass
class Tally:
    """What happened.

    Attributes:
      statuses: Answers by status, of all kinds of requests.
      right: Answers that were those of the model.
      wrong: Answers that were not.
      lost: Connections that ended without an answer.
      abuse: Attacks by name.
      swaps: Moves of the alias.
      notes: What went wrong, the first of each kind.
    """

    statuses: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    right: int = 0
    wrong: int = 0
    lost: int = 0
    abuse: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    swaps: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)


def make_models(folder: pathlib.Path) -> None:
    """Writes a registry with two versions of a classifier, and a model that makes vectors.

    Args:
      folder: Where to.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    from flaxbert.architecture import ModelConfig
    from flaxbert.families.graph import initialize_params
    from flaxbert.registry import Registry
    from flaxbert.weights.save import save_checkpoint

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )  # fmt: skip
    config = ModelConfig(
        vocab_size=64, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=128, num_labels=2, labels=("bad", "good"), initializer_range=0.2,
    )  # fmt: skip
    registry = Registry(str(folder / "registry"))
    for seed in (1, 2):
        params = initialize_params(config, "sequence-classification", seed)
        target = folder / f"film-{seed}"
        save_checkpoint(target, config=config, task="sequence-classification", params=params, tokenizer=wrapped)
        registry.add("film", target)
    registry.promote("film:1")
    params = initialize_params(config, "feature-extraction", 3)
    save_checkpoint(folder / "vectors", config=config, task="feature-extraction", params=params, tokenizer=wrapped)


def texts() -> list[str]:
    """Returns texts of 1 to 100 words."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.choice((1, 3, 8, 20, 50, 100)))) for _ in range(64)]


def expected_answers(folder: pathlib.Path, chosen: list[str]) -> dict[str, np.ndarray]:
    """Returns scores by version, and vectors.

    Args:
      folder: From ``make_models``.
      chosen: The texts.
    """
    import flaxbert

    found: dict[str, np.ndarray] = {}
    for seed in (1, 2):
        model = flaxbert.load(folder / f"film-{seed}")
        found[str(seed)] = np.asarray([[p.scores["bad"], p.scores["good"]] for p in model.predict(chosen)])
    found["vectors"] = flaxbert.load(folder / "vectors").encode(chosen, normalize=True)
    return found


class Soak:
    """The server, its clients and its enemies.

    Args:
      folder: From ``make_models``.
      minutes: How long.
      swaps: Moves of the alias.
      clients: Clients that compare their answers.
    """

    def __init__(self, folder: pathlib.Path, minutes: float, swaps: int, clients: int) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{PORT}"
        self.port = PORT
        self.seconds = 60.0 * minutes
        self.swaps = swaps
        self.clients = clients
        self.tally = Tally()
        self.chosen = texts()
        self.expected = expected_answers(folder, self.chosen)
        self.memory: list[tuple[float, float]] = []
        self.end = 0.0
        self.lossy_until = 0.0
        keys = folder / "admins"
        keys.write_text(ADMIN_KEY + "\n", encoding="utf-8")
        keys.chmod(0o600)
        words = [
            sys.executable, "-m", "flaxbert", "serve", "film=registry:film", f"vectors={folder / 'vectors'}", "--port", str(PORT),
            "--access.admin_keys_file", str(keys), "--log_requests", "false", "--rollout.poll_seconds", "1",
            "--limits.receive_seconds", "3", "--engine", "jax",
        ]  # fmt: skip
        environment = {**os.environ, "FLAXBERT_REGISTRY": str(folder / "registry")}
        self.process = subprocess.Popen(words, cwd=root(), env=environment)

    def worker(self) -> psutil.Process:
        """Returns the process that answers."""
        return psutil.Process(self.process.pid).children()[0]

    def note(self, text: str) -> None:
        """Keeps a sentence about what went wrong, at most fifty.

        Args:
          text: The sentence.
        """
        if len(self.tally.notes) < 50:
            self.tally.notes.append(text[:300])

    def note_status(self, status: int) -> None:
        """Counts an answer.

        Args:
          status: Its status.
        """
        self.tally.statuses[status] += 1

    async def wait(self) -> None:
        """Waits until the server is ready."""
        async with httpx2.AsyncClient() as client:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if (await client.get(f"{self.url}/health", timeout=5)).status_code == 200:
                        return
                await asyncio.sleep(0.2)

    async def ask(self, number: int) -> None:
        """Asks and compares, again and again.

        Args:
          number: Number of the client.
        """
        draw = random.Random(number)
        async with httpx2.AsyncClient(timeout=60) as client:
            while time.monotonic() < self.end:
                await self._ask_once(client, draw)

    async def _ask_once(self, client: httpx2.AsyncClient, draw: random.Random) -> None:
        places = [draw.randrange(len(self.chosen)) for _ in range(draw.choice((1, 1, 1, 4, 16)))]
        chosen = [self.chosen[place] for place in places]
        labels = draw.random() < 0.6
        path, inputs = ("/predict", [[text] for text in chosen]) if labels else ("/models/vectors/embed", chosen)
        try:
            answer = await client.post(self.url + path, json={"inputs": inputs})
        except httpx2.TransportError as error:
            if time.monotonic() > self.lossy_until:
                self.tally.lost += 1
                self.note(f"lost: {type(error).__name__} {error}")
            await asyncio.sleep(0.1)
            return
        self.tally.statuses[answer.status_code] += 1
        if answer.status_code != 200:
            self.note(f"{answer.status_code}: {answer.text}")
            await asyncio.sleep(0.1)
            return
        if labels:
            found = np.asarray(
                [[entry["score"] for entry in sorted(row, key=lambda e: e["label"])] for row in answer.json()]
            )
            wanted = self.expected[answer.headers["x-model-version"]][places]
        else:
            found, wanted = np.asarray(answer.json()), self.expected["vectors"][places]
        if found.shape == wanted.shape and np.abs(found - wanted).max() <= TOLERANCE:
            self.tally.right += 1
        else:
            self.tally.wrong += 1
            self.note(
                f"wrong: {path} {places} {np.abs(found - wanted).max() if found.shape == wanted.shape else found.shape}"
            )

    async def swap(self) -> None:
        """Moves the alias there and back, in turn by the server and from outside."""
        async with httpx2.AsyncClient(timeout=120, headers={"authorization": f"Bearer {ADMIN_KEY}"}) as client:
            for number in range(self.swaps):
                await asyncio.sleep(max(0.5, 0.9 * self.seconds / self.swaps - 1.0))
                path = "rollback" if number % 2 else "promote"
                body = {} if number % 2 else {"version": 2}
                try:
                    answer = await client.post(f"{self.url}/admin/models/film/{path}", json=body)
                except httpx2.TransportError:  # the worker was killed just now; the registry moved or did not
                    continue
                self.tally.swaps += answer.status_code == 200
                if answer.status_code not in (200, 409):
                    self.note(f"swap: {answer.status_code} {answer.text}")

    async def kill(self) -> None:
        """Kills the worker once, in the middle."""
        await asyncio.sleep(0.3 * self.seconds)
        self.lossy_until = time.monotonic() + 60.0
        self.worker().kill()
        await asyncio.sleep(1.0)
        await self.wait()
        self.lossy_until = time.monotonic() + 2.0
        self.memory.clear()

    async def watch(self) -> None:
        """Notes the memory of the worker."""
        while time.monotonic() < self.end:
            await asyncio.sleep(1.0)
            with contextlib.suppress(psutil.Error, IndexError):
                self.memory.append((time.monotonic(), self.worker().memory_info().rss))

    async def abuse(self, name: str, attack: Callable[[attacks.Target], Awaitable[None]]) -> None:
        """Attacks again and again.

        Args:
          name: Name of the attack.
          attack: The attack.
        """
        draw = random.Random(name)
        while time.monotonic() < self.end:
            with contextlib.suppress(OSError, TimeoutError, httpx2.TransportError):
                await asyncio.wait_for(attack(self), 30.0)
            self.tally.abuse[name] += 1
            await asyncio.sleep(draw.uniform(0.5, 2.0))

    def growth(self) -> float:
        """Returns by how much the memory grew: the median of its last fifth beside that of its second fifth."""
        sizes = [size for _, size in self.memory]
        fifth = max(1, len(sizes) // 5)
        return float(np.median(sizes[-fifth:]) / np.median(sizes[fifth : 2 * fifth]) - 1.0) if len(sizes) > 5 else 0.0

    async def run(self) -> None:
        """Does everything at once."""
        await self.wait()
        self.end = time.monotonic() + self.seconds
        tasks: list[Awaitable[None]] = [self.ask(number) for number in range(self.clients)]
        tasks += [self.swap(), self.kill(), self.watch()]
        tasks += [self.abuse(name, attack) for name, attack in attacks.ATTACKS.items()]
        await asyncio.gather(*tasks)

    def close(self) -> int:
        """Ends the server and returns its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return -9


def report(soak: Soak, code: int, most_growth: float) -> list[str]:
    """Prints what happened and returns the promises that were broken.

    Args:
      soak: The run.
      code: Exit code of the server.
      most_growth: Growth of memory that is allowed.
    """
    tally, growth = soak.tally, soak.growth()
    print(
        f"answers compared: {tally.right} right, {tally.wrong} wrong; lost connections {tally.lost}; swaps {tally.swaps}"
    )
    print(f"statuses: {dict(sorted(tally.statuses.items()))}")
    print(f"attacks: {dict(tally.abuse)}")
    print(
        f"memory of the worker: {growth:+.2%}, now {soak.memory[-1][1] / 1e6:.0f} MB"
        if soak.memory
        else "no memory seen"
    )
    mistakes = {status: n for status, n in tally.statuses.items() if status >= 500 and status not in attacks.ALLOWED}
    broken = []
    for wrong, text in (
        (tally.wrong > 0, "wrong answers"),
        (bool(mistakes), f"statuses {mistakes}"),
        (tally.lost > 0, "lost connections"),
        (growth > most_growth, f"memory grew by {growth:.1%}"),
        (code != 0, f"exit code {code}"),
        (tally.right == 0, "nothing was answered"),
        (tally.swaps < soak.swaps // 2, f"only {tally.swaps} swaps"),
    ):
        if wrong:
            broken.append(text)
    for note in tally.notes[:20]:
        print(f"  {note}")
    return broken


def main() -> int:
    """Runs it.

    Returns:
      1 where a promise was broken.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        make_models(folder)
        soak = Soak(folder, arguments.minutes, arguments.swaps, arguments.clients)
        try:
            asyncio.run(soak.run())
        finally:
            code = soak.close()
    broken = report(soak, code, MOST_GROWTH if arguments.minutes >= 10 else MOST_GROWTH_SHORT)
    print("promises broken: " + ", ".join(broken) if broken else "all promises held")
    if arguments.json:
        plain = dict(vars(soak.tally))  # asdict turns a Counter into one of pairs
        plain |= {"statuses": {str(status): count for status, count in soak.tally.statuses.items()}}
        document: dict[str, Any] = {
            "machine": machine(),
            "minutes": arguments.minutes,
            "growth": soak.growth(),
            "broken": broken,
        }
        write_json(arguments.json, {**document, **plain})
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
