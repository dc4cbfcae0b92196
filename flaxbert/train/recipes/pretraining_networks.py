"""The networks of a pre-training run: one that fills in words, or a generator and a discriminator."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.tree_util import tree_map

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.config import ObjectiveConfig, PretrainModel
from flaxbert.core.arrays import Params
from flaxbert.core.trees import leaf_names, stack_layers
from flaxbert.errors import ConfigError, nearest
from flaxbert.families import get_family
from flaxbert.families.distilbert import SIZE_NAMES
from flaxbert.families.graph import initialize_params
from flaxbert.model import Model, load
from flaxbert.train.distillation import DistillationObjective
from flaxbert.train.flops import NetworkWork
from flaxbert.train.losses import Forward
from flaxbert.train.objectives import PretrainingLoss
from flaxbert.train.recipes.forwards import PROJECTIONS, model_forward, projection_axes, student_part
from flaxbert.train.replaced_tokens import (
    DISCRIMINATOR,
    GENERATOR,
    ReplacedTokenForward,
    join,
    same_embeddings,
    take_embeddings,
)
from flaxbert.transforms.vocabulary import resize_vocabulary

SIZES: dict[str, tuple[int, int]] = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
"""Layers and width of each size (Turc et al., 2019, and Devlin et al., 2019); heads have 64 entries, feed-forward layers four times the width."""

_DISTANCES = {"relative_attention": True, "position_biased_input": False, "type_vocab_size": 0, "layer_norm_eps": 1e-7}

_HARMLESS = frozenset(
    {
        "use_cache",
        "classifier_dropout",
        "gradient_checkpointing",
        "bos_token_id",
        "eos_token_id",
        "sep_token_id",
        "cls_token_id",
    }
)
"""Keys of published ``config.json`` files that change nothing here."""

FAMILY_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "deberta": {**_DISTANCES, "pos_att_type": "c2p|p2c"},
    "deberta-v2": {
        **_DISTANCES,
        "pos_att_type": "p2c|c2p",
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
}
"""What the published models of a family have (He et al., 2021a and 2021b) where the defaults of its ``config.json`` would give another one: a
DeBERTa without distances is a BERT."""


@dataclasses.dataclass(frozen=True)
class Networks:
    """What is trained.

    Attributes:
      models: The model that is fine-tuned later, and the generator where there is one, each with its own parameters before training.
      params: The tree that is trained.
      forward: Both networks as one function of it.
      loss: The objectives.
      teachers: Models that run in the step beside a student and are not trained.
    """

    models: Mapping[str, Model]
    params: Params
    forward: Forward
    loss: PretrainingLoss | DistillationObjective
    teachers: tuple[Model, ...] = ()

    @property
    def main(self) -> Model:
        """The model that is fine-tuned later."""
        return self.models["model"]

    @property
    def work(self) -> tuple[NetworkWork, ...]:
        """What the operations behind MFU are counted from."""
        trained = [NetworkWork(model.config, model.task) for model in self.models.values()]
        return (*trained, *(NetworkWork(model.config, model.task, trained=False) for model in self.teachers))

    @property
    def scores(self) -> Forward:
        """What is evaluated, as a function of the tree: everything but teachers."""
        if not self.teachers:
            return self.forward
        own = model_forward(self.main)
        return lambda params, batch, **options: own(student_part(params), batch, **options)

    @property
    def leaf_axes(self) -> dict[str, tuple[str, ...]]:
        """Axis names of every leaf of the tree."""
        axes = get_family(self.main.config.family).parameter_axes
        if GENERATOR not in self.models:
            beside = {name: part for name, part in self.params.items() if name == PROJECTIONS}
            return {**axes(leaf_names(student_part(self.params))), **projection_axes(beside)}
        parts = {GENERATOR: self.models[GENERATOR], DISCRIMINATOR: self.main}
        found = {
            f"{part}.{name}": value
            for part, model in parts.items()
            for name, value in axes(leaf_names(model.params)).items()
        }
        return {name: found[name] for name in leaf_names(self.params)}

    def trained(self, params: Params) -> dict[str, Model]:
        """Returns the models with trained parameters, by the name of their folder.

        Args:
          params: The tree, on the host.
        """
        if not isinstance(self.forward, ReplacedTokenForward):
            return {"model": self.main.replace(params=student_part(params))}
        parts = self.forward.split(tree_map(jnp.asarray, params))
        return {
            name: self.models[name].replace(params=part)
            for name, part in zip(("generator", "model"), parts, strict=True)
        }


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
    defaults = {
        "model_type": source.family,
        "vocab_size": vocab_size,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "pad_token_id": pad_token_id,
        **FAMILY_ARCHITECTURES.get(source.family, {}),
    }
    family = get_family(source.family)
    kept = {key: value for key, value in defaults.items() if SIZE_NAMES.get(key) not in source.architecture}
    config = family.config_from_json({**kept, **source.architecture})
    known = {*family.config_to_json(family.config_from_json(defaults), "feature-extraction"), *defaults}
    unknown = sorted((set(source.architecture) & set(config.extra)) - known - _HARMLESS)
    if unknown:
        raise ConfigError(
            f"model.architecture names {', '.join(unknown)}, which a new {source.family} does not have.{nearest(unknown[0], known)}"
        )
    if config.vocab_size < vocab_size:
        raise ConfigError(
            f"vocab_size in model.architecture is {config.vocab_size}, but the tokenizer has ids up to {vocab_size - 1}; raise it, for example "
            f"to a multiple of 64, or leave it out."
        )
    if config.max_length < row_length:
        raise ConfigError(
            f"data.row_length is {row_length}, but the model has positions for {config.max_length} tokens; lower it, or raise "
            "max_position_embeddings in model.architecture."
        )
    return config


def check_positions(config: ModelConfig, path: str, row_length: int) -> None:
    """Refuses rows that are longer than a checkpoint's positions: their embeddings would be not-a-number.

    Args:
      config: Its architecture.
      path: Where it is.
      row_length: Tokens of the longest row.

    Raises:
      ConfigError: The rows are too long.
    """
    if config.max_length < row_length:
        raise ConfigError(
            f"data.row_length is {row_length}, but the model at {path} has positions for {config.max_length} tokens; lower it."
        )


def generator_config(config: ModelConfig, rate: float) -> ModelConfig:
    """Returns the architecture of the generator beside a discriminator: narrower where the family projects its embeddings, else less deep.

    Args:
      config: Architecture of the discriminator.
      rate: Share of the discriminator's width or depth.

    Raises:
      ConfigError: Nothing would be left.
    """
    if config.family != "electra":
        return config.replace(num_hidden_layers=max(1, round(config.num_hidden_layers * rate)))
    heads = max(1, round(config.num_attention_heads * rate))
    width = config.hidden_size // config.num_attention_heads * heads
    return config.replace(
        hidden_size=width,
        embedding_size=config.embedding_width,
        num_attention_heads=heads,
        intermediate_size=max(1, round(config.intermediate_size * rate)),
    )


def build_networks(
    source: PretrainModel, objective: ObjectiveConfig, tokenizer: Any, row_length: int, seed: int
) -> Networks:
    """Makes or loads what is trained.

    Args:
      source: Which model.
      objective: What it learns.
      tokenizer: The tokenizer of the corpora.
      row_length: Tokens of a row.
      seed: Seed of new weights.

    Returns:
      The networks with their parameters before training.

    Raises:
      ConfigError: The tokenizer is not the model's, or the family lacks a head that the objective needs.
    """
    if source.path:
        main = load_network(source.path, source, _task(objective), tokenizer, seed)
        check_positions(main.config, source.path, row_length)
    else:
        size = max(tokenizer.get_vocab().values()) + 1
        config = new_model_config(source, size, row_length, int(tokenizer.pad_token_id or 0))
        main = _new_model(source, config, _task(objective), tokenizer, seed)
    if not objective.replaced_tokens:
        return _one_network(main, objective)
    if objective.generator:
        generator = load_network(objective.generator, source, "fill-mask", tokenizer, seed)
        check_positions(generator.config, objective.generator, row_length)
    else:
        config = generator_config(main.config, objective.generator_rate)
        generator = _new_model(source, config, "fill-mask", tokenizer, seed + 1)
    return _two_networks(generator, main, objective, known=bool(source.path))


def new_networks(
    source: PretrainModel,
    objective: ObjectiveConfig,
    config: ModelConfig,
    tokenizer: Any,
    seed: int,
    generator: ModelConfig | None = None,
) -> Networks:
    """Makes what is trained from new weights.

    Args:
      source: How the model is run; its family, size and path do not matter.
      objective: What it learns.
      config: Architecture.
      tokenizer: The tokenizer that the models carry, or None.
      seed: Seed of new weights.
      generator: Architecture of the generator, where the objective has one; None derives it.

    Returns:
      The networks with their parameters before training.

    Raises:
      ConfigError: The family lacks a head that the objective needs.
    """
    main = _new_model(source, config, _task(objective), tokenizer, seed)
    if not objective.replaced_tokens:
        return _one_network(main, objective)
    small = generator or generator_config(config, objective.generator_rate)
    return _two_networks(_new_model(source, small, "fill-mask", tokenizer, seed + 1), main, objective)


def _task(objective: ObjectiveConfig) -> str:
    if objective.replaced_tokens:
        return "replaced-token-detection"
    return "fill-mask" if objective.pairs == "none" else "pretraining"


def _one_network(model: Model, objective: ObjectiveConfig) -> Networks:
    loss = PretrainingLoss(pair_weight=0.0 if objective.pairs == "none" else objective.pair_weight)
    return Networks({"model": model}, model.params, model_forward(model), loss)


def load_network(path: str, source: PretrainModel, task: str, tokenizer: Any, seed: int) -> Model:
    """Loads a network whose tokenizer is that of the corpora, or the beginning of it.

    Args:
      path: Folder or id on the hub.
      source: How it is executed.
      task: Canonical task name.
      tokenizer: The tokenizer of the corpora.
      seed: Seed of heads that the checkpoint lacks.

    Returns:
      The network; where the corpora have more tokens, with rows for these.

    Raises:
      ConfigError: The corpora have another tokenizer.
      WeightsError: It can not be loaded.
    """
    model = load(
        path,
        task=task,
        precision=source.precision,
        attention=source.attention,
        scan_layers=source.scan_layers,
        remat=source.remat,
        revision=source.revision or None if path == source.path else None,
        offline=source.offline,
        seed=seed,
    )
    old = {} if model.tokenizer is None else model.tokenizer.get_vocab()
    new = tokenizer.get_vocab()
    if old == new:
        return model
    if not old or any(new.get(token) != number for token, number in old.items()):
        raise ConfigError(
            f"The corpora were prepared with another tokenizer than that of {path}; prepare them with "
            f"prepare.tokenizer {path}, or with a longer one that flaxbert tokenizer extend makes of it."
        )
    size = max(max(new.values()) + 1, model.config.vocab_size)
    params = resize_vocabulary(model.params, size)
    return model.replace(params=params, tokenizer=tokenizer, config=model.config.replace(vocab_size=size))


def _new_model(source: PretrainModel, config: ModelConfig, task: str, tokenizer: Any, seed: int) -> Model:
    if task not in get_family(config.family).architectures:
        raise ConfigError(f"The family {config.family} has no head for '{task}', which the objective needs.")
    params = initialize_params(config, task, seed)
    return Model(
        config=config,
        params=stack_layers(params) if source.scan_layers else params,
        task=task,
        tokenizer=tokenizer,
        execution=Execution(source.precision, source.attention, source.scan_layers, source.remat),
    )


def _two_networks(
    generator: Model,
    discriminator: Model,
    objective: ObjectiveConfig,
    *,
    known: bool = False,
) -> Networks:
    """Joins two networks; of what they share, new weights give way to those of a checkpoint."""
    sharing = objective.sharing
    parts = {GENERATOR: generator.params, DISCRIMINATOR: discriminator.params}
    if known and objective.generator:
        if sharing == "tied" and not same_embeddings(parts[GENERATOR], parts[DISCRIMINATOR]):
            raise ConfigError(
                f"The embeddings of the generator in {objective.generator} are not those of the model, so they can not be tied; set "
                "objective.sharing to disentangled or none."
            )
    elif known:
        parts[GENERATOR] = take_embeddings(parts[GENERATOR], parts[DISCRIMINATOR], sharing)
    else:
        parts[DISCRIMINATOR] = take_embeddings(parts[DISCRIMINATOR], parts[GENERATOR], sharing)
    return Networks(
        {"model": discriminator, "generator": generator},
        join(parts[GENERATOR], parts[DISCRIMINATOR], sharing),
        ReplacedTokenForward(model_forward(generator), model_forward(discriminator), sharing),
        PretrainingLoss(replaced_weight=objective.replaced_weight),
    )
