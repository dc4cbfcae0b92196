"""Pre-training from start to end: corpora, model, compiled step, training, evaluation, a folder to fine-tune from."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from flaxbert.architecture import ModelConfig
from flaxbert.config import PretrainConfig
from flaxbert.core.arrays import Params
from flaxbert.core.runtime import initialize_distributed
from flaxbert.core.sharding import build_mesh, check_mesh_fits, place_batch, replicated
from flaxbert.core.trees import count_parameters
from flaxbert.data.masking import Masker
from flaxbert.data.pipeline import StepPipeline
from flaxbert.data.prepared import TOKENIZER_FOLDER, PreparedCorpus
from flaxbert.data.pretraining_batches import EvaluationRows, PretrainingBatches, RowMixture
from flaxbert.data.pretraining_rows import RowSource, SpecialTokens, hold_out
from flaxbert.data.words import WordTable, word_table
from flaxbert.errors import ConfigError, DataError
from flaxbert.model import Model
from flaxbert.train.callbacks import Callback, RunInfo
from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.goodput import TimeLedger
from flaxbert.train.objectives import pretraining_counts
from flaxbert.train.recipes.outcome import MODEL_FOLDER, build_callbacks
from flaxbert.train.recipes.plan import StepJob
from flaxbert.train.recipes.pretraining_networks import Networks, build_networks
from flaxbert.train.recipes.run import TrainingRun, find_checkpoint, to_host
from flaxbert.train.recipes.setup import Say, batch_ways, global_batch_size, say_on_first
from flaxbert.train.state import join_params
from flaxbert.weights.tokenizer import load_tokenizer

EVALUATION_BATCH_SIZE = 32

_MUST_AGREE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model", ("path", "family", "size", "architecture", "scan_layers", "precision")),
    ("data", ("corpora", "weights", "validation_rate", "row_length", "packing")),
    ("objective", ("pairs", "pair_weight")),
    ("train", ("optimizer", "batch_size", "target_batch_size", "num_steps", "num_epochs", "schedule", "learning_rate")),
    ("train", ("freeze", "seed")),
)


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """What a pre-training run gives back.

    Attributes:
      model: The model, with host parameters.
      folder: Folder of the run.
      reason: finished, early_stopping or preempted.
      step: Step of the parameters.
      before: Metrics before training.
      after: Metrics of the parameters; empty where the run was stopped.
      history: Every evaluation.
    """

    model: Model
    folder: pathlib.Path
    reason: str
    step: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    history: Sequence[Mapping[str, float]]


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

    @property
    def job(self) -> StepJob:
        """What the step is made from."""
        rows = self.batches.mixture.sources[0].rows([0], 0)
        return StepJob(
            params=self.networks.params,
            forward=self.networks.forward,
            precision=self.config.model.precision,
            train=self.config.train,
            mesh=self.mesh,
            leaf_axes=self.networks.leaf_axes,
            total_steps=self.total_steps,
            loss=self.networks.loss,
            example={**rows, "example_weight": self.batches[0]["example_weight"][:1]},
        )

    @functools.cached_property
    def _counts(self) -> Any:
        forward = self.networks.forward

        def run(params: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
            return pretraining_counts(forward(params, batch), batch)

        return jax.jit(run, out_shardings=replicated(self.mesh))

    def evaluate(self, params: Params) -> dict[str, float]:
        """Returns loss, perplexity and accuracy of hidden words, and of pairs, on the held-out rows.

        Args:
          params: Parameter tree on the mesh.
        """
        ways = batch_ways(self.mesh)
        size = self.config.train.evaluation_batch_size or EVALUATION_BATCH_SIZE
        rows = EvaluationRows(
            self.validation,
            -(-size // ways) * ways,
            self.config.data.max_validation_rows,
            jax.process_index(),
            jax.process_count(),
        )
        sums: dict[str, float] = {}
        with jax.set_mesh(self.mesh):
            for batch in rows:
                for name, value in self._counts(params, place_batch(batch, self.mesh)).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        return _metrics(sums)


def _metrics(sums: Mapping[str, float]) -> dict[str, float]:
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
    return found


def _load_corpora(config: PretrainConfig) -> tuple[list[PreparedCorpus], Any]:
    data = config.data
    if not data.corpora:
        raise ConfigError("data.corpora is empty: name folders that flaxbert prepare wrote.")
    corpora = [PreparedCorpus(folder, skip_damaged=data.skip_damaged) for folder in data.corpora]
    if data.validation:
        corpora.append(PreparedCorpus(data.validation, skip_damaged=data.skip_damaged))
    tokenizers = [
        load_tokenizer(corpus.folder / TOKENIZER_FOLDER, ModelConfig(vocab_size=1 << 31)) for corpus in corpora
    ]
    for corpus, tokenizer in zip(corpora, tokenizers, strict=True):
        if tokenizer.get_vocab() != tokenizers[0].get_vocab():
            raise DataError(
                f"{corpus.folder} was prepared with another tokenizer than {corpora[0].folder}; prepare both with one."
            )
    return corpora, tokenizers[0]


def _special_tokens(tokenizer: Any, config: ModelConfig) -> SpecialTokens:
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
        typed=config.type_vocab_size > 1,
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
    networks = build_networks(config.model, config.objective, tokenizer, config.data.row_length, config.train.seed)
    batch_size = global_batch_size(config.train)
    accumulation = config.train.accumulation_steps if config.train.batch_size != "auto" else 1
    check_mesh_fits(mesh, networks.main.config, batch_size // accumulation)
    make = functools.partial(_make_rows, config, tokenizer, networks.main.config)
    if config.data.validation:
        *training, held_corpus = corpora
        sources = [make(corpus, None) for corpus in training]
        validation = make(held_corpus, None)
    else:
        held = hold_out(len(corpora[0]), config.data.validation_rate, config.train.seed)
        if not held.any():
            raise ConfigError(
                "No document is held out for evaluation; raise data.validation_rate, or name a corpus in data.validation."
            )
        sources = [make(corpus, ~held if number == 0 else None) for number, corpus in enumerate(corpora)]
        validation = make(corpora[0], held)
    mixture = RowMixture(sources, config.data.weights)
    steps_per_epoch = -(-mixture.num_rows // batch_size)
    total_steps = config.train.num_steps or max(1, math.ceil(steps_per_epoch * config.train.num_epochs))
    for corpus, source in zip(corpora, sources, strict=False):
        say(
            f"{corpus.folder}: {len(source):,} rows of {config.data.row_length} tokens, "
            f"{len(source.pieces):,} pieces, packed to {source.packing.efficiency:.1%}"
        )
    batches = PretrainingBatches(mixture, batch_size, total_steps, jax.process_index(), jax.process_count())
    return Pretraining(config, networks, mesh, batches, validation, total_steps)


def _make_rows(
    config: PretrainConfig, tokenizer: Any, model: ModelConfig, corpus: PreparedCorpus, documents: Any
) -> RowSource:
    data, special = config.data, _special_tokens(tokenizer, model)
    table: WordTable = word_table(tokenizer, needs_words=config.masking.unit != "token")
    return RowSource(
        corpus,
        special,
        Masker(config.masking, table, special.mask, special.pad),
        row_length=data.row_length,
        packing=data.packing,
        pairs=config.objective.pairs,
        min_tokens=data.min_tokens,
        max_pieces=data.max_pieces,
        documents=documents,
        seed=config.train.seed,
    )


def pretrain(
    config: PretrainConfig, say: Say = say_on_first, extra_callbacks: Sequence[Callback] = ()
) -> PretrainResult:
    """Pre-trains a model as a config says; an interrupted run goes on where its newest good checkpoint stands.

    Args:
      config: The run.
      say: Where lines for the user go.
      extra_callbacks: Who else is told what happens.

    Returns:
      The model, its metrics before and after, and why training ended.

    Raises:
      FlaxbertError: Bad config, data, model, mesh, memory or loss; each message says where and how to mend it.
    """
    ledger = TimeLedger()
    prepared = prepare_pretraining(config, say)
    job = prepared.job
    folder = pathlib.Path(config.output.folder)
    with CheckpointStore(folder / "checkpoints", keep=config.train.keep_checkpoints, higher_is_better=False) as store:
        newest = find_checkpoint(store, config.train, config.to_dict(), _MUST_AGREE, say)
        callbacks = build_callbacks(config.output, "loss", folder, extra_callbacks, ledger)
        run = TrainingRun(
            job=job,
            pipeline=StepPipeline(prepared.batches),
            steps_per_epoch=prepared.batches.steps_per_epoch,
            evaluate=prepared.evaluate,
            metric=("loss", False),
            config=config.to_dict(),
            info=functools.partial(_run_info, prepared),
            store=store,
            callbacks=callbacks,
            say=say,
            networks=prepared.networks.work,
        )
        try:
            before = run.before(newest)
            result, compiled = run.train(newest, before)
            state, step = run.chosen(result, compiled)
            params = join_params(state, compiled.kinds)
            after = {} if result.reason == "preempted" else prepared.evaluate(params)
            callbacks.on_end({"step": step, "reason": result.reason, "seconds": result.seconds, "metrics": after})
            models = prepared.networks.trained(to_host(params))
        finally:
            callbacks.close()
            run.pipeline.close()
    if result.reason != "preempted" and jax.process_index() == 0:
        for name, model in models.items():
            model.save(folder / name, overwrite=True)
        say(", ".join(f"{name} {before[name]:.4g} -> {value:.4g}" for name, value in after.items()))
        say(f"The model is in {folder / MODEL_FOLDER} (step {step}, {result.reason}).")
    return PretrainResult(models["model"], folder, result.reason, step, before, after, result.progress.history)


def _run_info(prepared: Pretraining, first_step: int) -> RunInfo:
    return RunInfo(
        config=prepared.config,
        model_config=prepared.networks.main.config,
        total_steps=prepared.total_steps,
        first_step=first_step,
        resumed=first_step > 0,
        num_examples=prepared.batches.mixture.num_rows,
        num_parameters=count_parameters(prepared.networks.params),
    )
