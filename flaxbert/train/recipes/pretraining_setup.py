"""A pre-training run before its first step: corpora, rows in phases, networks, mesh, evaluation."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxbert.architecture import ModelConfig
from flaxbert.config import ObjectiveConfig, PretrainConfig, PretrainPhase, TrainConfig
from flaxbert.core.arrays import Params
from flaxbert.core.runtime import initialize_distributed
from flaxbert.core.sharding import batch_share, batch_ways, build_mesh, check_mesh_fits, place_batch, replicated
from flaxbert.data.masking import Masker
from flaxbert.data.prepared import TOKENIZER_FOLDER, PreparedCorpus
from flaxbert.data.pretraining_batches import EvaluationRows, Phase, PretrainingBatches, RowMixture, split_steps
from flaxbert.data.pretraining_rows import RowSource, SpecialTokens, hold_out_documents
from flaxbert.data.words import WordTable, unspaced_tokens, word_table
from flaxbert.errors import ConfigError, DataError
from flaxbert.train.objectives import pretraining_counts
from flaxbert.train.recipes.forwards import place_teachers
from flaxbert.train.recipes.plan import StepJob
from flaxbert.train.recipes.pretraining_networks import Networks, build_networks
from flaxbert.train.recipes.setup import Say, global_batch_size, say_on_first
from flaxbert.train.recipes.taught_networks import taught_networks
from flaxbert.weights.tokenizer import tokenizer_alone

EVALUATION_BATCH_SIZE = 32

TOTAL_LOSS = "total_loss"
"""Metric: the losses of an objective of several parts, weighted as in training."""

_SAMPLE_DOCUMENTS = 32
_MOST_UNSPACED = 0.3
"""Share of a corpus's first documents that may be characters of scripts without blanks before the user is told what a word is."""


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A pre-training run ready to be compiled.

    Attributes:
      config: The resolved run.
      networks: What is trained.
      mesh: The mesh.
      batches: Training batches of this process.
      validation: Held-out rows.
      total_steps: Optimizer steps of the whole run.
    """

    config: PretrainConfig
    networks: Networks
    mesh: Mesh
    batches: PretrainingBatches
    validation: RowSource
    total_steps: int

    @functools.cached_property
    def jobs(self) -> list[StepJob]:
        """What the step is made from in each phase; they differ in the shape of the batch alone."""
        fixed = place_teachers(self.networks.teachers, self.mesh)
        steps: dict[int, Any] = {}
        return [
            StepJob(
                params=self.networks.params,
                forward=self.networks.forward,
                precision=self.config.model.precision,
                train=train_of(self.config.train, phase),
                mesh=self.mesh,
                leaf_axes=self.networks.leaf_axes,
                total_steps=self.total_steps,
                loss=self.networks.loss,
                example=self.batches.complete(phase.mixture.sources[0].rows([0], 0), 0),
                fixed=fixed,
                steps=steps,
            )
            for phase in self.batches.phases
        ]

    @functools.cached_property
    def _counts(self) -> Any:
        forward = self.networks.scores

        def run(params: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
            return pretraining_counts(forward(params, batch), batch)

        return jax.jit(run, out_shardings=replicated(self.mesh))

    def evaluate(self, params: Params) -> dict[str, float]:
        """Returns loss, perplexity and accuracy of hidden words, of pairs and of replaced tokens, on the held-out rows.

        ``replaced_rate`` is the share of the tokens that was changed: who finds none has an accuracy of one less it.
        ``replaced_recall`` is the share of the changed ones that was found.

        Args:
          params: Parameter tree on the mesh.

        Raises:
          DataError: Nothing of the held-out rows can be hidden.
        """
        ways = batch_ways(self.mesh)
        size = self.config.train.evaluation_batch_size or EVALUATION_BATCH_SIZE
        rows = EvaluationRows(
            self.validation,
            -(-size // ways) * ways,
            self.config.data.max_validation_rows,
            *batch_share(self.mesh),
        )
        sums: dict[str, float] = {}
        with jax.set_mesh(self.mesh):
            for batch in rows:
                for name, value in self._counts(params, place_batch(batch, self.mesh)).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        if not sums.get("masked_lm_count"):
            raise DataError(
                f"The held-out rows of {self.validation.corpus.folder} have no token that could be hidden: all are special ones, as where the "
                "tokenizer knows no word of the text. Prepare the corpus with a tokenizer that was trained on such text."
            )
        return _metrics(sums, self.config.objective)

    @property
    def metric(self) -> tuple[str, bool]:
        """The metric that chooses the best step, and whether higher is better: ``train.metric``, else the loss of the whole objective.

        Raises:
          ConfigError: There is no such metric.
        """
        names = metric_names(self.config.objective)
        name = self.config.train.metric or (TOTAL_LOSS if TOTAL_LOSS in names else "loss")
        if name not in names:
            raise ConfigError(f"train.metric is {name!r}, but pre-training with this objective has {', '.join(names)}.")
        return name, not name.endswith(("loss", "perplexity"))


def metric_names(objective: ObjectiveConfig) -> list[str]:
    """Returns the names of what an evaluation measures.

    Args:
      objective: What is learned.
    """
    names = ["loss", "perplexity", "masked_accuracy"]
    if objective.pairs != "none":
        names += ["pair_loss", "pair_accuracy"]
    if objective.replaced_tokens:
        names += ["replaced_loss", "replaced_accuracy", "replaced_rate", "replaced_recall"]
    return names + ([TOTAL_LOSS] if len(names) > 3 else [])


def _metrics(sums: Mapping[str, float], objective: ObjectiveConfig) -> dict[str, float]:
    loss = sums["masked_lm_loss"] / max(sums["masked_lm_count"], 1.0)
    found = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "masked_accuracy": sums["masked_lm_right"] / max(sums["masked_lm_count"], 1.0),
    }
    for part in ("pair", "replaced"):
        if f"{part}_count" in sums:
            count = max(sums[f"{part}_count"], 1.0)
            found |= {f"{part}_loss": sums[f"{part}_loss"] / count, f"{part}_accuracy": sums[f"{part}_right"] / count}
    if "replaced_changed" in sums:
        changed = sums["replaced_changed"]
        found["replaced_rate"] = changed / max(sums["replaced_count"], 1.0)
        found["replaced_recall"] = sums["replaced_found"] / max(changed, 1.0)
    weights = {"pair": objective.pair_weight, "replaced": objective.replaced_weight}
    others = [weight * found[f"{part}_loss"] for part, weight in weights.items() if f"{part}_loss" in found]
    return found | ({TOTAL_LOSS: loss + sum(others)} if others else {})


def _load_corpora(config: PretrainConfig) -> tuple[list[PreparedCorpus], Any]:
    data = config.data
    if not data.corpora:
        raise ConfigError("data.corpora is empty: name folders that flaxbert prepare wrote.")
    corpora = [PreparedCorpus(folder, skip_damaged=data.skip_damaged) for folder in data.corpora]
    if data.validation:
        corpora.append(PreparedCorpus(data.validation, skip_damaged=data.skip_damaged))
    tokenizers = [tokenizer_alone(corpus.folder / TOKENIZER_FOLDER) for corpus in corpora]
    for corpus, tokenizer in zip(corpora, tokenizers, strict=True):
        if tokenizer.get_vocab() != tokenizers[0].get_vocab():
            raise DataError(
                f"{corpus.folder} was prepared with another tokenizer than {corpora[0].folder}; prepare both with one."
            )
    return corpora, tokenizers[0]


def special_tokens(tokenizer: Any, typed: bool) -> SpecialTokens:
    """Returns the ids that frame pieces.

    Args:
      tokenizer: The tokenizer.
      typed: Whether the model tells first and second text by token types.

    Raises:
      ConfigError: The tokenizer lacks one.
    """
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad", "mask")}
    missing = [name for name, number in ids.items() if number is None]
    if missing:
        raise ConfigError(f"The tokenizer has no {', '.join(missing)} token, which pre-training needs.")
    return SpecialTokens(
        first=ids["cls"],
        separator=ids["sep"],
        pad=ids["pad"],
        mask=ids["mask"],
        doubled=tokenizer.num_special_tokens_to_add(pair=True) == 4,
        typed=typed,
    )


def prepare_pretraining(config: PretrainConfig, say: Say = say_on_first) -> Pretraining:
    """Opens the corpora, makes or loads the model and lays out the mesh.

    Args:
      config: The run.
      say: Where lines for the user go.

    Returns:
      The prepared run.

    Raises:
      ConfigError: Settings do not fit together, or the model has another tokenizer.
      DataError: A corpus is damaged or empty.
      MeshError: The mesh does not fit devices, model or batch.
    """
    initialize_distributed(config.mesh)
    mesh = build_mesh(config.mesh)
    corpora, tokenizer = _load_corpora(config)
    for corpus in corpora:
        if corpus.skipped:
            say(f"{corpus.folder}: left out {', '.join(corpus.skipped)}, which are missing or damaged.")
    if config.masking.unit != "token":
        _explain_words(corpora, tokenizer, say)
    planned = phases_of(config)
    longest = max(phase.row_length for phase in planned)
    if config.teacher.path:
        networks = taught_networks(config, corpora, tokenizer, longest)
    else:
        networks = build_networks(config.model, config.objective, tokenizer, longest, config.train.seed)
    corpora, documents, held_corpus, held = _hold_out(config, corpora)
    make = functools.partial(_make_rows, config, tokenizer, networks.main.config)
    mixtures: dict[int, RowMixture] = {}
    for length in dict.fromkeys(phase.row_length for phase in planned):
        sources = [make(corpus, chosen, length) for corpus, chosen in zip(corpora, documents, strict=True)]
        mixtures[length] = RowMixture(sources, config.data.weights)
        for source in sources:
            say(
                f"{source.corpus.folder}: {len(source):,} rows of {length} tokens, {len(source.pieces):,} pieces, packed to "
                f"{source.packing.efficiency:.1%}"
            )
    total_steps = _count_steps(config, planned, mixtures)
    counts = split_steps(total_steps, [phase.share for phase in planned])
    phases = [
        Phase(mixtures[phase.row_length], phase.batch_size, count) for phase, count in zip(planned, counts, strict=True)
    ]
    accumulation = config.train.fixed_accumulation_steps
    for phase, length in zip(phases, (phase.row_length for phase in planned), strict=True):
        check_mesh_fits(mesh, networks.main.config, phase.batch_size // accumulation, (length,))
    shows_progress = bool(networks.teachers) and config.distillation.temperature_schedule != "constant"
    batches = PretrainingBatches(
        phases, *batch_share(mesh), tokenizer=_digest(tokenizer), shows_progress=shows_progress
    )
    try:
        validation = make(held_corpus, held, longest)
    except DataError as error:
        raise DataError(f"The documents held out for evaluation in {held_corpus.folder}: {error}") from error
    return Pretraining(config, networks, mesh, batches, validation, total_steps)


def _explain_words(corpora: Sequence[PreparedCorpus], tokenizer: Any, say: Say) -> None:
    """Tells of corpora, prepared without a segmenter, whose words are single characters because their script has no blanks."""
    unspaced = unspaced_tokens(tokenizer)
    for corpus in corpora:
        if not corpus.made_from.get("segmenter"):
            sample = [corpus.document(number).input_ids for number in range(min(len(corpus), _SAMPLE_DOCUMENTS))]
            share = float(unspaced[np.concatenate(sample)].mean())
            if share > _MOST_UNSPACED:
                say(
                    f"{corpus.folder}: {share:.0%} of the tokens are characters of a script without blanks, and each counts as a word for "
                    "masking.unit; prepare the corpus with prepare.segmenter to hide whole words."
                )


def _hold_out(
    config: PretrainConfig, corpora: list[PreparedCorpus]
) -> tuple[list[PreparedCorpus], list[Any], PreparedCorpus, Any]:
    """Returns the corpora of training with the documents that are read of each, and the same for evaluation; None reads all."""
    if config.data.validation:
        *corpora, held_corpus = corpora
        return corpora, [None] * len(corpora), held_corpus, None
    held_corpus = corpora[0]
    held = hold_out_documents(len(held_corpus), config.data.validation_rate, config.train.seed)
    if not held.any():
        mend = "raise data.validation_rate, or name" if len(held_corpus) > 1 else "it is one document; name"
        raise ConfigError(
            f"No document of {held_corpus.folder} is held out for evaluation; {mend} a corpus in data.validation."
        )
    return corpora, [~held, *[None] * (len(corpora) - 1)], held_corpus, held


def _digest(tokenizer: Any) -> str:
    entries = "\n".join(f"{number} {token}" for token, number in sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(entries.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def phases_of(config: PretrainConfig) -> list[PretrainPhase]:
    """Returns the phases of a run with their row lengths and batch sizes filled in; one where the config names none.

    Args:
      config: The run.

    Raises:
      ConfigError: Phases do not go together with a batch size that is found out, or with accumulation.
    """
    train, data = config.train, config.data
    if data.phases and train.batch_size == "auto":
        raise ConfigError("data.phases need a number in train.batch_size; auto finds one size for the whole run.")
    size = global_batch_size(train)
    found = [
        PretrainPhase(phase.share, phase.row_length or data.row_length, phase.batch_size or size)
        for phase in data.phases or (PretrainPhase(),)
    ]
    for phase in found:
        accumulation = train.fixed_accumulation_steps
        if phase.batch_size % accumulation:
            raise ConfigError(
                f"data.phases has batch_size {phase.batch_size}, which is not divisible by train.accumulation_steps {accumulation}."
            )
    return found


def train_of(train: TrainConfig, phase: Phase | PretrainPhase) -> TrainConfig:
    """Returns the options of training with the batch size of a phase.

    Args:
      train: Options of the run.
      phase: The phase.
    """
    return train if train.batch_size == "auto" else dataclasses.replace(train, batch_size=phase.batch_size)


def _count_steps(config: PretrainConfig, phases: Sequence[PretrainPhase], mixtures: Mapping[int, RowMixture]) -> int:
    """Returns the steps of the run: as told, or as many as see the tokens of the corpora ``num_epochs`` times."""
    if config.train.num_steps:
        return config.train.num_steps
    first = phases[0].row_length
    tokens = mixtures[first].num_rows * first * config.train.num_epochs
    whole = sum(phase.share for phase in phases)
    per_step = sum(phase.share / whole * phase.batch_size * phase.row_length for phase in phases)
    return max(len(phases), math.ceil(round(tokens / per_step, 6)))


def _make_rows(
    config: PretrainConfig, tokenizer: Any, model: ModelConfig, corpus: PreparedCorpus, documents: Any, row_length: int
) -> RowSource:
    data, special = config.data, special_tokens(tokenizer, model.type_vocab_size > 1)
    table: WordTable = word_table(tokenizer, needs_words=config.masking.unit != "token")
    return RowSource(
        corpus,
        special,
        Masker(config.masking, table, special.mask, special.pad),
        row_length=row_length,
        packing=data.packing,
        pairs=config.objective.pairs,
        min_tokens=data.min_tokens,
        max_pieces=data.max_pieces,
        documents=documents,
        seed=config.train.seed,
    )
