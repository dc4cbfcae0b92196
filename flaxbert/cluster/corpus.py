"""Preparation over Ray Data: the shards that one machine would write, byte for byte, written by many."""

import abc
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert.cluster.connection import connect
from flaxbert.cluster.plan import LaunchPlan
from flaxbert.cluster.rows import Arrays, RowWorker, spread
from flaxbert.config import DedupConfig
from flaxbert.data.deduplication import FingerprintTable
from flaxbert.data.preparation import ShardJob, fingerprint_documents, write_shards
from flaxbert.data.prepared import PreparedCorpus, Shard
from flaxbert.errors import ClusterError
from flaxbert.train.recipes.prepare import Engine, prepare_corpus
from flaxbert.train.recipes.setup import Say
from flaxbert.weights.tokenizer import tokenizer_alone


def prepare_on_cluster(plan: LaunchPlan, say: Say = print) -> PreparedCorpus:
    """Prepares a corpus on a cluster whose nodes share the folder of the corpus and the inputs.

    Args:
      plan: What is launched.
      say: Where lines for the user go.

    Returns:
      The corpus.

    Raises:
      FlaxbertError: As for ``prepare_corpus``.
      ClusterError: The cluster can not be reached or has no room, or its nodes do not share the folder.
    """
    options = plan.options
    with connect(plan):
        engine = RayEngine(plan)
        return prepare_corpus(options["prepare"], options["corpus"], options["dedup"], say=say, engine=engine)


@dataclasses.dataclass(frozen=True)
class RayEngine(Engine):
    """Works in the workers of a cluster.

    Attributes:
      plan: What is launched.
    """

    plan: LaunchPlan

    def fingerprints(self, job: ShardJob, dedup: DedupConfig) -> Iterator[FingerprintTable]:
        """See ``Engine.fingerprints``."""
        for _, arrays in self._spread(job, FingerprintWorker, dedup):
            yield FingerprintTable(**arrays)

    def shards(self, job: ShardJob, tokenizer: Any) -> Iterator[Shard]:
        """See ``Engine.shards``."""
        del tokenizer  # each worker loads its own
        written: dict[int, list[Shard]] = {}
        expected = 0
        for number, arrays in self._spread(job, ShardWriterWorker):
            written[number] = [Shard(**found) for found in json.loads(str(arrays["shards"]))]
            for shard in written[number]:
                _require_file(Path(job.folder), shard, str(arrays["node"]))
            while expected in written:
                yield from written.pop(expected)
                expected += 1

    def _spread(self, job: ShardJob, worker: type["JobWorker"], *more: Any) -> Iterator[tuple[int, Arrays]]:
        """Yields what becomes of the parts of a job, each with its number, as soon as it is there."""
        rows = [_pack_job(part) for part in job.split(self.plan.cluster.num_workers)]
        arguments = (str(self.plan.folder), dataclasses.replace(job, dropped=frozenset()), *more)
        return spread(rows, worker, arguments, self.plan.cluster)


def _require_file(folder: Path, shard: Shard, node: str) -> None:
    if not (folder / shard.file).is_file():
        raise ClusterError(
            f"{folder / shard.file} was written on node {node}, but is not there on this one; prepare.folder must lie on a file "
            "system that all nodes share."
        )


def _pack_job(job: ShardJob) -> Arrays:
    return {
        "numbers": np.array(job.numbers, np.int64),
        "dropped": np.array(sorted(job.dropped), np.int64).reshape(-1, 2),
    }


class JobWorker(RowWorker):
    """Does parts of the work of preparation.

    Args:
      folder: As for ``RowWorker``.
      job: All shards, nothing dropped.
    """

    def __init__(self, folder: str, job: ShardJob) -> None:
        super().__init__(folder)
        self._job = job

    def work(self, number: int, arrays: Arrays) -> Arrays:
        """See ``RowWorker.work``."""
        del number
        dropped = frozenset((int(first), int(second)) for first, second in arrays["dropped"])
        numbers = tuple(map(int, arrays["numbers"]))
        return self.do(dataclasses.replace(self._job, numbers=numbers, dropped=dropped))

    @abc.abstractmethod
    def do(self, job: ShardJob) -> Arrays:
        """Does a part of the work.

        Args:
          job: The part.

        Returns:
          What comes of it.
        """


class FingerprintWorker(JobWorker):
    """Reads documents and says what of each is compared.

    Args:
      folder: As for ``RowWorker``.
      job: All shards, nothing dropped.
      dedup: What counts as repeated.
    """

    def __init__(self, folder: str, job: ShardJob, dedup: DedupConfig) -> None:
        super().__init__(folder, job)
        self._dedup = dedup

    def do(self, job: ShardJob) -> Arrays:
        """See ``JobWorker.do``."""
        return vars(fingerprint_documents(job, self._dedup))


class ShardWriterWorker(JobWorker):
    """Writes shards.

    Args:
      folder: As for ``RowWorker``.
      job: All shards, nothing dropped.
    """

    def __init__(self, folder: str, job: ShardJob) -> None:
        super().__init__(folder, job)
        self._tokenizer: Any = None

    def do(self, job: ShardJob) -> Arrays:
        """See ``JobWorker.do``."""
        if self._tokenizer is None:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker has its own processors
            self._tokenizer = tokenizer_alone(self._job.tokenizer_folder)
        shards = [dataclasses.asdict(shard) for shard in write_shards(job, self._tokenizer)]
        return {"shards": np.array(json.dumps(shards)), "node": np.array(os.uname().nodename)}
