"""What is measured: the same for every peer of a run."""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Settings:
    """One measured configuration.

    Attributes:
      job: train, infer (token ids in, logits out), label (sentences in, labels out) or pretrain (rows with hidden words).
      variant: Way in which the peer runs, for example f32, bf16, int8, compiled.
      folder: Folder of the model in Hugging Face layout that all peers load.
      batch_size: Rows of a batch.
      length: Tokens of a row, all of them real.
      seed: Seed of the token ids and labels.
      learning_rate: AdamW's learning rate.
      vocab_size: Token ids are drawn below this number.
      texts: File with one sentence a line, for the job label.
      num_texts: Sentences in it; 0 for the other jobs.
      rows: NPZ file with batches ``[batches, batch, ...]``, for the job pretrain.
      num_tokens: Mean of the real tokens of a batch in it; 0 for the other jobs.
    """

    job: str
    variant: str
    folder: str
    batch_size: int = 16
    length: int = 128
    seed: int = 0
    learning_rate: float = 2e-5
    vocab_size: int = 30522
    texts: str = ""
    num_texts: int = 0
    rows: str = ""
    num_tokens: int = 0

    @property
    def num_sequences(self) -> int:
        """What one step computes: sequences, or real tokens in pre-training."""
        return self.num_tokens or self.num_texts or self.batch_size

    def batches(self) -> list[dict[str, np.ndarray]]:
        """Returns the batches of pre-training, which are read in turn."""
        with np.load(self.rows) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return [{name: array[number] for name, array in arrays.items()} for number in range(len(arrays["input_ids"]))]

    def sentences(self) -> list[str]:
        """Returns the sentences that every peer labels."""
        return pathlib.Path(self.texts).read_text(encoding="utf-8").splitlines()

    def batch(self) -> dict[str, np.ndarray]:
        """Returns the batch that every peer computes on, int32."""
        random = np.random.default_rng(self.seed)
        shape = (self.batch_size, self.length)
        return {
            "input_ids": random.integers(1000, self.vocab_size, shape, dtype=np.int32),
            "attention_mask": np.ones(shape, np.int32),
            "token_type_ids": np.zeros(shape, np.int32),
            "labels": random.integers(0, 2, self.batch_size, dtype=np.int32),
        }


def peak_bytes() -> int:
    """Returns the most memory that this process ever held, in bytes.

    From the kernel's high-water mark of this program; ``getrusage`` also counts what the process held before it was started
    by ``exec``, which is the parent's memory.
    """
    import resource

    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(prepare: Any) -> None:
    """Answers a benchmark's requests on standard input: ``run`` times one step; anything else ends the process.

    Args:
      prepare: The peer's function from settings to its step and facts about itself.
    """
    import time

    settings = Settings(**json.loads(sys.argv[1]))
    answers = sys.stdout
    sys.stdout = sys.stderr
    step, facts = prepare(settings)
    for _ in range(2):
        step()
    print(json.dumps({"ready": True, **facts}), file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() != "run":
            break
        started = time.perf_counter()
        value = step()
        seconds = time.perf_counter() - started
        answer = {"seconds": seconds, "value": float(value), "peak_bytes": peak_bytes()}
        print(json.dumps(answer), file=answers, flush=True)


def root() -> pathlib.Path:
    """Returns the project's folder."""
    return pathlib.Path(__file__).resolve().parent.parent
