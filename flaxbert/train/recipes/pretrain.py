"""Pre-training from start to end: corpora, model, compiled step, training, evaluation, a folder to fine-tune from."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.arrays import Params
from flaxbert.core.runtime import initialize_distributed
from flaxbert.core.sharding import build_mesh, check_mesh_fits, place_batch, replicated
from flaxbert.core.trees import count_parameters, leaf_names, stack_layers
from flaxbert.data.masking import Masker
from flaxbert.data.pipeline import StepPipeline
from flaxbert.data.prepared import TOKENIZER_FOLDER, PreparedCorpus
from flaxbert.data.pretraining_batches import EvaluationRows, PretrainingBatches, RowMixture
from flaxbert.data.pretraining_rows import RowSource, SpecialTokens, hold_out
from flaxbert.data.words import WordTable, word_table
from flaxbert.errors import ConfigError, DataError
from flaxbert.families import get_family
from flaxbert.families.graph import forward, graph_definition, initialize_params
from flaxbert.model import Model, load
from flaxbert.pretraining_config import PretrainConfig, PretrainModel
from flaxbert.train.callbacks import Callback, RunInfo
from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.objectives import PretrainingLoss, pretraining_counts
from flaxbert.train.recipes.outcome import MODEL_FOLDER, build_callbacks
from flaxbert.train.recipes.plan import StepJob
from flaxbert.train.recipes.run import TrainingRun, find_checkpoint, to_host
from flaxbert.train.recipes.setup import Say, batch_ways, global_batch_size, say_on_first
from flaxbert.train.state import join_params
from flaxbert.weights.tokenizer import load_tokenizer

SIZES: dict[str, tuple[int, int]] = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
"""Layers and width of each size (Turc et al., 2019, and Devlin et al., 2019); heads have 64 entries, feed-forward layers four times the width."""

EVALUATION_BATCH_SIZE = 32

_MUST_AGREE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model", ("path", "family", "size", "architecture", "scan_layers", "precision")),
    ("data", ("corpora", "weights", "validation_rate", "row_length", "packing")),
    ("objective", ("pairs", "pair_weight")),
    ("train", ("optimizer", "batch_size", "target_batch_size", "num_steps", "num_epochs", "schedule", "learning_rate")),
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
      model: Model with host parameters, before training.
      mesh: The mesh.
      batches: Training batches of this process.
      validation: Held-out rows.
      total_steps: Optimizer steps of the whole run.
    """

    config: PretrainConfig
    model: Model
    mesh: Mesh
    batches: PretrainingBatches
    validation: RowSource
    total_steps: int

    @property
    def job(self) -> StepJob:
        """What the step is made from."""
        objective = self.config.objective
        family = get_family(self.model.config.family)
        rows = self.batches.mixture.sources[0].rows([0], 0)
        return StepJob(
            model=self.model,
            train=self.config.train,
            mesh=self.mesh,
            leaf_axes=family.parameter_axes(leaf_names(self.model.params)),
            total_steps=self.total_steps,
            loss=PretrainingLoss(objective.pair_weight if objective.pairs != "none" else 0.0),
            example={**rows, "example_weight": self.batches[0]["example_weight"][:1]},
        )

    def evaluate(self, params: Params) -> dict[str, float]:
        """Returns loss, perplexity and accuracy of hidden words, and of pairs, on the held-out rows.

        Args:
          params: Parameter tree on the mesh.
        """
        program = _evaluation_program(self.model.config, self.model.task, self.model.execution, self.mesh)
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
                for name, value in program(params, place_batch(batch, self.mesh)).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        return _metrics(sums)


@functools.lru_cache(maxsize=4)
def _evaluation_program(config: ModelConfig, task: str, execution: Execution, mesh: Mesh) -> Any:
    graphdef = graph_definition(config, task, execution)

    def run(params: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        return pretraining_counts(forward(graphdef, params, batch), batch)

    return jax.jit(run, out_shardings=replicated(mesh))


def _metrics(sums: Mapping[str, float]) -> dict[str, float]:
    loss = sums["masked_lm_loss"] / max(sums["masked_lm_count"], 1.0)
    found = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "masked_accuracy": sums["masked_lm_right"] / max(sums["masked_lm_count"], 1.0),
    }
    if "pair_count" in sums:
        count = max(sums["pair_count"], 1.0)
        found |= {"pair_loss": sums["pair_loss"] / count, "pair_accuracy": sums["pair_right"] / count}
    return found


def new_model_config(source: PretrainModel, vocab_size: int, row_length: int, pad_token_id: int) -> ModelConfig:
    """Returns the architecture of a new model.

    Args:
      source: Family, size and what differs.
      vocab_size: Entries of the tokenizer.
      row_length: Tokens of a row, which positions must reach.
      pad_token_id: Id of padding.

    Raises:
      ConfigError: The family or a key is not known, or values do not fit together.
    """
    layers, width = SIZES[source.size]
    family = get_family(source.family)
    json = {
        "model_type": source.family,
        "vocab_size": vocab_size,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "pad_token_id": pad_token_id,
        **source.architecture,
    }
    config = family.config_from_json(json)
    if config.max_length < row_length:
        raise ConfigError(
            f"data.row_length is {row_length}, but the model has positions for {config.max_length} tokens; lower it, or raise "
            "max_position_embeddings in model.architecture."
        )
    return config


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


def _make_model(config: PretrainConfig, tokenizer: Any) -> Model:
    source, task = config.model, "fill-mask" if config.objective.pairs == "none" else "pretraining"
    execution = Execution(source.precision, source.attention, source.scan_layers, source.remat)
    if source.path:
        model = load(
            source.path,
            task=task,
            precision=source.precision,
            attention=source.attention,
            scan_layers=source.scan_layers,
            remat=source.remat,
            revision=source.revision or None,
            offline=source.offline,
            seed=config.train.seed,
        )
        if model.tokenizer is None or model.tokenizer.get_vocab() != tokenizer.get_vocab():
            raise ConfigError(
                f"The corpora were prepared with another tokenizer than that of {source.path}; prepare them with "
                f"prepare.tokenizer {source.path}."
            )
        return model
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    settings = new_model_config(source, vocab_size, config.data.row_length, int(tokenizer.pad_token_id or 0))
    if task not in get_family(settings.family).architectures:
        raise ConfigError(f"objective.pairs is {config.objective.pairs}, but {settings.family} has no head for pairs.")
    params = initialize_params(settings, task, config.train.seed)
    return Model(
        config=settings,
        params=stack_layers(params) if source.scan_layers else params,
        task=task,
        tokenizer=tokenizer,
        execution=execution,
    )


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
    model = _make_model(config, tokenizer)
    batch_size = global_batch_size(config.train)
    accumulation = config.train.accumulation_steps if config.train.batch_size != "auto" else 1
    check_mesh_fits(mesh, model.config, batch_size // accumulation)
    make = functools.partial(_make_rows, config, tokenizer, model.config)
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
    return Pretraining(config, model, mesh, batches, validation, total_steps)


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
    prepared = prepare_pretraining(config, say)
    job = prepared.job
    folder = pathlib.Path(config.output.folder)
    with CheckpointStore(folder / "checkpoints", keep=config.train.keep_checkpoints, higher_is_better=False) as store:
        newest = find_checkpoint(store, config.train, config.to_dict(), _MUST_AGREE)
        callbacks = build_callbacks(config.output, "loss", folder, extra_callbacks)
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
        )
        try:
            before = run.before(newest)
            result, compiled = run.train(newest, before)
            state, step = run.chosen(result, compiled)
            params = join_params(state, compiled.kinds)
            after = {} if result.reason == "preempted" else prepared.evaluate(params)
            callbacks.on_end({"step": step, "reason": result.reason, "seconds": result.seconds, "metrics": after})
            model = prepared.model.replace(params=to_host(params))
        finally:
            callbacks.close()
            run.pipeline.close()
    if result.reason != "preempted" and jax.process_index() == 0:
        model.save(folder / MODEL_FOLDER, overwrite=True)
        say(", ".join(f"{name} {before[name]:.4g} -> {value:.4g}" for name, value in after.items()))
        say(f"The model is in {folder / MODEL_FOLDER} (step {step}, {result.reason}).")
    return PretrainResult(model, folder, result.reason, step, before, after, result.progress.history)


def _run_info(prepared: Pretraining, first_step: int) -> RunInfo:
    return RunInfo(
        config=prepared.config,
        model_config=prepared.model.config,
        total_steps=prepared.total_steps,
        first_step=first_step,
        resumed=first_step > 0,
        num_examples=prepared.batches.mixture.num_rows,
        num_parameters=count_parameters(prepared.model.params),
    )
