"""What teachers say of the training examples, computed once and stored."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxbert.core.digests import find_damage, write_manifest
from flaxbert.core.sharding import batch_share, batch_ways, param_shardings, shard
from flaxbert.core.trees import flatten_parts, leaf_names
from flaxbert.data.batches import digest_examples, evaluation_batches
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.evaluate import collect_logits, evaluation_program
from flaxbert.families import get_family
from flaxbert.model import Model
from flaxbert.tasks.base import softmax
from flaxbert.train.distillation import TEACHER_IDS, TEACHER_LOGITS
from flaxbert.train.recipes.evaluator import EVALUATION_BATCH_SIZE
from flaxbert.train.recipes.setup import Say

OUTPUTS_FILE = "outputs.json"
"""What the stored outputs belong to."""

FORMAT = "flaxbert-teacher-outputs-1"


@dataclasses.dataclass(frozen=True)
class TeacherOutputs:
    """Scores of all teachers for all training examples, by their name in a batch.

    Attributes:
      arrays: ``teacher_logits_N`` and, where not all are kept, ``teacher_ids_N``; one entry for each example or, where tokens are
        scored, for each token.
      identity: What they belong to, fit for JSON.
    """

    arrays: Mapping[str, np.ndarray]
    identity: Mapping[str, Any]


def digest_model(model: Model) -> str:
    """Returns a digest of the parameters and of how they are used, in hexadecimal.

    Args:
      model: The model.
    """
    digest = hashlib.blake2b(digest_size=16)
    shape = dataclasses.replace(model.config, extra={})
    digest.update(f"{shape} {model.task} {model.execution.precision}".encode())
    for name, array in sorted(flatten_parts(model.params).items()):
        host = np.ascontiguousarray(array)
        digest.update(f"{name} {host.dtype} {host.shape}".encode())
        digest.update(host.view(np.uint8).data if host.size else b"")
    return digest.hexdigest()


def run_teacher(
    teacher: Model, examples: TokenizedExamples, mesh: Mesh, buckets: Sequence[int], batch_size: int
) -> np.ndarray | list[np.ndarray]:
    """Returns a teacher's scores of tokenized examples, in their order.

    Args:
      teacher: The teacher.
      examples: The examples, by its own tokenizer.
      mesh: The mesh.
      buckets: Lengths in tokens that batches are padded to; empty for the usual ones.
      batch_size: Examples of a batch; 0 takes the usual number.
    """
    leaf_axes = get_family(teacher.config.family).parameter_axes(leaf_names(teacher.params))
    params = shard(teacher.params, param_shardings(teacher.params, leaf_axes, mesh))
    ways, (index, count) = batch_ways(mesh), batch_share(mesh)
    batches = evaluation_batches(
        examples,
        -(-(batch_size or EVALUATION_BATCH_SIZE) // ways) * ways,
        buckets,
        process_index=index,
        process_count=count,
    )
    program = evaluation_program(teacher.config, teacher.task, teacher.execution, mesh)
    return collect_logits(program, params, batches, len(examples), mesh)


def _flatten(outputs: np.ndarray | list[np.ndarray], examples: TokenizedExamples) -> np.ndarray:
    """Returns one row for each example, or for each token where outputs are as long as their input."""
    if isinstance(outputs, np.ndarray):
        return outputs.astype(np.float32)
    lengths = examples.lengths.tolist()
    return np.concatenate([row[:length] for row, length in zip(outputs, lengths, strict=True)]).astype(np.float32)


def keep_top(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels with the highest scores and the logarithms of their probabilities.

    Args:
      logits: Scores ``[rows, labels]``.
      count: How many are kept.
    """
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :count].astype(np.int32)
    kept = np.take_along_axis(np.log(np.maximum(softmax(logits), 1e-30)), ids, axis=-1)
    return ids, kept.astype(np.float32)


def teacher_outputs(
    teachers: Sequence[Model],
    examples: Sequence[TokenizedExamples],
    mesh: Mesh,
    folder: str,
    *,
    top_k: int,
    buckets: Sequence[int],
    batch_size: int,
    say: Say,
) -> TeacherOutputs:
    """Returns the stored outputs of teachers, or computes them and, where a folder is given, stores them.

    Args:
      teachers: The teachers.
      examples: The training examples by the tokenizer of each teacher.
      mesh: The mesh.
      folder: Where they are stored; empty: nowhere.
      top_k: Most scores that are kept of each output; 0 keeps all.
      buckets: Lengths in tokens that batches are padded to.
      batch_size: As for ``run_teacher``.
      say: Where lines for the user go.

    Raises:
      ConfigError: The folder holds outputs of other teachers or examples; says which differ.
      DataError: What is stored is damaged.
    """
    identity = {
        "format": FORMAT,
        "teachers": [digest_model(teacher) for teacher in teachers],
        "examples": [digest_examples(one) for one in examples],
        "top_k": top_k,
    }
    place = pathlib.Path(folder) if folder else None
    if place is not None and place.exists() and (not place.is_dir() or any(place.iterdir())):
        say(f"The teacher's outputs are read from {place}.")
        return TeacherOutputs(_read(place, identity), identity)
    say(f"The teacher's outputs on {len(examples[0])} training examples are computed once.")
    arrays: dict[str, np.ndarray] = {}
    for number, (teacher, own) in enumerate(zip(teachers, examples, strict=True)):
        logits = _flatten(run_teacher(teacher, own, mesh, buckets, batch_size), own)
        if not np.isfinite(logits).all():
            raise DataError(
                "A score of the teacher is not finite, so that nothing can be learned from it; check the teacher."
            )
        if 0 < top_k < logits.shape[-1]:
            arrays[TEACHER_IDS.format(number)], logits = keep_top(logits, top_k)
        arrays[TEACHER_LOGITS.format(number)] = logits
    if place is not None and jax.process_index() == 0:
        _write(place, arrays, identity)
    return TeacherOutputs(arrays, identity)


def _write(folder: pathlib.Path, arrays: Mapping[str, np.ndarray], identity: Mapping[str, Any]) -> None:
    """Writes a folder that appears whole or not at all."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    staging.parent.mkdir(parents=True, exist_ok=True)
    try:
        staging.mkdir()
        for name, array in arrays.items():
            np.save(staging / f"{name}.npy", array, allow_pickle=False)
        (staging / OUTPUTS_FILE).write_text(
            json.dumps({**identity, "arrays": sorted(arrays)}, indent=1) + "\n", "utf-8"
        )
        write_manifest(staging)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _read(folder: pathlib.Path, identity: Mapping[str, Any]) -> dict[str, np.ndarray]:
    file = folder / OUTPUTS_FILE
    if not file.is_file():
        raise ConfigError(f"teacher.cache {folder} holds something else than a teacher's outputs; name a new folder.")
    damage = find_damage(folder)
    if damage:
        raise DataError(f"The teacher's outputs in {folder} are damaged ({'; '.join(damage[:3])}); remove the folder.")
    stored = json.loads(file.read_text("utf-8"))
    differing = [name for name, value in identity.items() if stored.get(name) != value]
    if differing:
        words = {"teachers": "other teachers", "examples": "other training examples", "top_k": "another cache_top_k"}
        said = ", ".join(words.get(name, f"another {name}") for name in differing)
        raise ConfigError(
            f"teacher.cache {folder} holds outputs of {said}; name another folder, or remove this one to compute them anew."
        )
    return {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in stored["arrays"]}
