"""Preparation over Ray Data: the shards that one machine would write, byte for byte, written by many."""

import dataclasses
import heapq
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert.cluster.connection import connect
from flaxbert.cluster.plan import LaunchPlan
from flaxbert.cluster.rows import Arrays, RowWorker, spread
from flaxbert.config import DedupConfig
from flaxbert.data.deduplication import Fingerprint
from flaxbert.data.preparation import Place, ShardJob, place_fingerprints, shard_documents, write_shard
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

    def fingerprints(self, job: ShardJob, dedup: DedupConfig) -> Iterator[tuple[Place, Fingerprint]]:
        """See ``Engine.fingerprints``; the documents of one shard are read by one worker."""
        rows = [{} for _ in range(job.num_shards)]
        arguments = (str(self.plan.folder), job, dedup)
        parts = [_unpack(arrays) for _, arrays in spread(rows, FingerprintWorker, arguments, self.plan.cluster)]
        yield from heapq.merge(*parts, key=lambda part: part[0])

    def shards(self, jobs: Sequence[ShardJob], tokenizer: Any) -> Iterator[Shard]:
        """See ``Engine.shards``."""
        del tokenizer  # each worker loads its own
        rows = [_pack_places(job.dropped) for job in jobs]
        arguments = (str(self.plan.folder), dataclasses.replace(jobs[0], dropped=frozenset()))
        found = spread(rows, ShardWriterWorker, arguments, self.plan.cluster)
        written: dict[int, Shard] = {}
        expected = 0
        for number, arrays in found:
            written[number] = Shard(**json.loads(str(arrays["shard"])))
            while expected in written:
                shard = written.pop(expected)
                _require_file(Path(jobs[0].folder), shard, str(arrays["node"]))
                yield shard
                expected += 1


def _require_file(folder: Path, shard: Shard, node: str) -> None:
    if not (folder / shard.file).is_file():
        raise ClusterError(
            f"{folder / shard.file} was written on node {node}, but is not there on this one; prepare.folder must lie on a file "
            "system that all nodes share."
        )


def _pack_places(places: Iterable[Place]) -> Arrays:
    return {"dropped": np.array(sorted(places), np.int64).reshape(-1, 2)}


def _unpack(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[Place, Fingerprint]]:
    signatures = iter(arrays["signatures"])
    for place, digest, signed in zip(arrays["places"], arrays["digests"], arrays["signed"], strict=True):
        signature = next(signatures) if signed else None
        yield (int(place[0]), int(place[1])), Fingerprint(digest.tobytes(), signature)


class FingerprintWorker(RowWorker):
    """Reads the documents of a shard and says what of each is compared.

    Args:
      folder: As for ``RowWorker``.
      job: The job of any shard.
      dedup: What counts as repeated.
    """

    def __init__(self, folder: str, job: ShardJob, dedup: DedupConfig) -> None:
        super().__init__(folder)
        self._job, self._dedup = job, dedup

    def work(self, number: int, arrays: Arrays) -> Arrays:
        """See ``RowWorker.work``."""
        del arrays
        job, size = self._job, self._dedup.num_permutations
        documents = shard_documents(job.inputs, job.config, number, job.num_shards)
        found = list(place_fingerprints(documents, self._dedup))
        signatures = [fingerprint.signature for _, fingerprint in found if fingerprint.signature is not None]
        digests = b"".join(fingerprint.digest for _, fingerprint in found)
        return {
            "places": np.array([place for place, _ in found], np.int64).reshape(-1, 2),
            "digests": np.frombuffer(digests, np.uint8).reshape(len(found), -1 if found else 0),
            "signed": np.array([fingerprint.signature is not None for _, fingerprint in found], np.bool_),
            "signatures": np.stack(signatures) if signatures else np.zeros((0, size), np.uint32),
        }


class ShardWriterWorker(RowWorker):
    """Writes shards.

    Args:
      folder: As for ``RowWorker``.
      job: The job of any shard, nothing dropped.
    """

    def __init__(self, folder: str, job: ShardJob) -> None:
        super().__init__(folder)
        self._job = job
        self._tokenizer: Any = None

    def work(self, number: int, arrays: Arrays) -> Arrays:
        """See ``RowWorker.work``."""
        if self._tokenizer is None:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker has its own processors
            self._tokenizer = tokenizer_alone(self._job.tokenizer_folder)
        dropped = frozenset((int(first), int(second)) for first, second in arrays["dropped"])
        shard = write_shard(dataclasses.replace(self._job, number=number, dropped=dropped), self._tokenizer)
        return {"shard": np.array(json.dumps(dataclasses.asdict(shard))), "node": np.array(os.uname().nodename)}
