"""The recipe behind ``flaxbert prune``: tokens, layers, heads and neurons go, then single weights; zeros become smaller matrices."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from flaxbert.architecture import ModelConfig
from flaxbert.compression.examples import read_calibration
from flaxbert.compression.importance import unit_importance
from flaxbert.config import CorpusConfig, DataConfig, OneShotConfig, TaskConfig
from flaxbert.core.arrays import is_quantized
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.trees import flatten_names, leaf_names
from flaxbert.data.corpus import read_documents
from flaxbert.data.inputs import expand_inputs
from flaxbert.data.ordering import resolve_length_buckets
from flaxbert.data.vocabulary_selection import check_same_pieces, count_tokens, narrow_tokenizer, select_tokens
from flaxbert.errors import ConfigError, RuleError
from flaxbert.evaluation.calibrate import measure_statistics
from flaxbert.evaluation.score import read_labelled
from flaxbert.families import get_family
from flaxbert.families.base import Family
from flaxbert.model import Model
from flaxbert.train.losses import loss_for
from flaxbert.train.recipes.forwards import model_forward
from flaxbert.train.recipes.pruned import unit_axes_of
from flaxbert.transforms import default_sparsity_rules, sparsify
from flaxbert.transforms.budgets import UnitBudget, choose_units
from flaxbert.transforms.depth import keep_layers, parse_layers
from flaxbert.transforms.report import CompressionReport, compare_trees
from flaxbert.transforms.shrink import shrink
from flaxbert.transforms.sparsify import BlockSparsity, GroupSparsity, MagnitudeSparsity, SparsityRule, SparsitySpec
from flaxbert.transforms.statistics import Statistics
from flaxbert.transforms.units import (
    Scores,
    UnitKind,
    Units,
    find_units,
    magnitude_scores,
    mask_units,
    random_scores,
)
from flaxbert.transforms.vocabulary import keep_tokens

NUM_COMPARED_TEXTS = 1000
"""Texts that are cut once more by the smaller tokenizer, to see that it does so as before."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Labelled examples that importance is measured on.

    Attributes:
      examples: File, folder or hub id; empty where none are needed.
      data: Columns, format and lengths.
      task: What the task needs beyond texts and labels.
    """

    examples: str = ""
    data: DataConfig = DataConfig(max_length=0)
    task: TaskConfig = TaskConfig()


def _tuple(value: Any) -> tuple[Any, ...]:
    """Returns an option that a config holds as a tuple, however it was given."""
    return tuple(value)


def parse_weights(options: OneShotConfig) -> SparsitySpec | None:
    """Returns how single weights are pruned, or None where they are not.

    Args:
      options: What is removed.

    Raises:
      ConfigError: A malformed pattern or block, or a rate that is none.
    """
    criterion = options.importance if options.importance in ("random", "second_moment") else "magnitude"
    scope = "global" if options.scope == "global" else "leaf"
    if options.pattern:
        match = re.fullmatch(r"(\d+):(\d+)", options.pattern)
        if match is None:
            raise ConfigError(f"--pattern is '{options.pattern}', but must be N:M such as 2:4.")
        return GroupSparsity(int(match[1]), int(match[2]), criterion, options.seed)
    if options.rate is None:
        return None
    if options.block:
        match = re.fullmatch(r"(\d+)x(\d+)", options.block)
        if match is None:
            raise ConfigError(f"--block is '{options.block}', but must be HEIGHTxWIDTH such as 4x4.")
        return BlockSparsity(options.rate, int(match[1]), int(match[2]), scope, criterion, options.seed)
    return MagnitudeSparsity(options.rate, scope, criterion, options.seed)


@dataclasses.dataclass(frozen=True)
class _Pruning:
    """A model on its way through the steps of pruning.

    Attributes:
      model: What it is by now.
      sources: Name of each leaf in the model that came in.
      notes: What was done.
    """

    model: Model
    sources: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        """The family of the model."""
        return get_family(self.model.config.family)

    @property
    def leaf_axes(self) -> dict[str, tuple[str, ...]]:
        """Axis names of its leaves."""
        return self.family.parameter_axes(leaf_names(self.model.params))

    def require(self, kind: str) -> None:
        reason = self.family.unprunable(self.model.config).get(kind)
        if reason is not None:
            raise ConfigError(f"The {kind} of a {self.model.config.family} can not be pruned: {reason}.")

    def replace(self, config: ModelConfig, params: Any, report: CompressionReport, **changes: Any) -> "_Pruning":
        model = self.model.replace(config=config, params=params, **changes)
        return dataclasses.replace(self, model=model, notes=(*self.notes, *report.notes))

    def unit_axes(self) -> dict[UnitKind, Any]:
        """Axes that carry heads and neurons, of the kinds that can be pruned."""
        return unit_axes_of(self.model.config)


def _prune_vocabulary(state: _Pruning, files: Sequence[str], min_count: int) -> _Pruning:
    model, tokenizer = state.model, state.model.tokenizer
    if tokenizer is None:
        raise ConfigError("The model's folder has no tokenizer, whose vocabulary could be made smaller.")
    corpus = CorpusConfig(inputs=tuple(files), document="line", sentence="line")
    texts = [
        sentence
        for part in expand_inputs(corpus)
        for document in read_documents(part, corpus)
        for sentence in document.sentences
    ]
    counts = count_tokens(tokenizer, texts)
    offset = model.config.pad_token_id + 1 if model.config.position_offset else 0
    kept = select_tokens(tokenizer, counts, min_count, offset)
    smaller = narrow_tokenizer(tokenizer, kept)
    if min_count == 1:
        check_same_pieces(tokenizer, smaller, kept, texts[:NUM_COMPARED_TEXTS])
    found = keep_tokens(model.config, model.params, state.leaf_axes, kept)
    return state.replace(*found, tokenizer=smaller)


def _prune_layers(state: _Pruning, text: str) -> _Pruning:
    state.require("layers")
    model, family = state.model, state.family
    kept = parse_layers(text, model.config.num_hidden_layers)
    config, params, report = keep_layers(
        model.config,
        model.params,
        kept,
        select_layers=family.select_layers,
        next_layer_leaves=family.next_layer_leaves,
    )
    renamed = compare_sources(model.params, params)
    sources = {name: state.sources[old] for name, old in renamed.items()}
    return dataclasses.replace(state.replace(config, params, report), sources=sources)


def compare_sources(before: Any, after: Any) -> dict[str, str]:
    """Returns the name before of every leaf after, where leaves were renamed but are the same objects.

    Args:
      before: Tree of named leaves.
      after: A tree of some of them under other names.
    """
    names = {id(leaf): name for name, leaf in flatten_names(before).items()}
    return {name: names[id(leaf)] for name, leaf in flatten_names(after).items()}


def _scores(
    state: _Pruning, units: dict[UnitKind, Units], options: OneShotConfig, measured: Measured
) -> dict[UnitKind, Scores]:
    if options.importance == "magnitude":
        return {kind: magnitude_scores(state.model.params, found) for kind, found in units.items()}
    if options.importance == "random":
        return {kind: random_scores(found, options.seed) for kind, found in units.items()}
    model = state.model
    task, examples, setting = read_labelled(model, measured.data, measured.examples, measured.task)
    encoded = task.encode(model.tokenizer, examples, setting, labelled=True)
    return unit_importance(
        model_forward(model),
        model.params,
        units,
        encoded.features,
        loss_for(model.task, setting.problem_type),
        length_buckets=resolve_length_buckets((), setting.max_length),
    )


def _statistics(model: Model, rules: Sequence[SparsityRule], options: OneShotConfig, measured: Measured) -> Statistics:
    """Returns what the kernels that are pruned by it are multiplied by on the texts of calibration."""
    if options.importance != "second_moment":
        return {}
    examples = read_calibration(model, options.calibration, measured.data, options.num_examples, options=measured.task)
    pruned = [name for name, spec in match_rules(model.params, rules, purpose="sparsity").items() if spec is not None]
    return measure_statistics(model, examples, pruned, second_moments=True)


def _prune_units(state: _Pruning, options: OneShotConfig, measured: Measured) -> _Pruning:
    budgets: dict[UnitKind, UnitBudget] = {}
    wanted: dict[UnitKind, tuple[float, tuple[int, ...]]] = {
        "heads": (options.heads, _tuple(options.heads_kept)),
        "neurons": (options.neurons, _tuple(options.neurons_kept)),
    }
    for kind, (rate, counts) in wanted.items():
        if rate or counts:
            state.require(kind)
            multiple = options.multiple_of if kind == "neurons" else 1
            budgets[kind] = UnitBudget(rate, counts, "layer" if counts else options.scope, multiple)
    axes, model = state.unit_axes(), state.model
    units: dict[UnitKind, Units] = {
        kind: find_units(model.config, model.params, state.leaf_axes, kind, axes[kind]) for kind in budgets
    }
    scores, params = _scores(state, units, options, measured), model.params
    for kind, budget in budgets.items():
        kept = choose_units(units[kind], scores[kind], budget, options.even)
        params = mask_units(params, units[kind], kept)
    return dataclasses.replace(state, model=model.replace(params=params))


def prune_model(
    model: Model, options: OneShotConfig, measured: Measured = Measured()
) -> tuple[Model, CompressionReport]:
    """Prunes a model in one shot: its vocabulary, then its layers, its heads and neurons, and last single weights of what is left.

    Args:
      model: The model, which stays as it is.
      options: What is removed.
      measured: Labelled examples, for importance by gradient.

    Returns:
      The pruned model, and what is left of every leaf of the old one.

    Raises:
      ConfigError: Nothing is named to prune, an option does not fit the model, or its family can not be pruned so.
      DataError: Texts or labelled examples are empty or malformed.
      RuleError: The model is quantized, or an entry of ``keep`` matches no leaf.
      ShapeError: A pattern or block does not divide a matrix.
    """
    quantized = [leaf for leaf in flatten_names(model.params).values() if is_quantized(leaf)]
    if quantized:
        raise RuleError(
            f"The model is {quantized[0].kind}: prune before you quantize, from the model as it was trained."
        )
    weights = parse_weights(options)
    model = model.with_execution(scan_layers=False)
    state = _Pruning(model, {name: name for name in leaf_names(model.params)})
    if options.vocabulary:
        state = _prune_vocabulary(state, _tuple(options.vocabulary), options.min_count)
    if options.layers:
        state = _prune_layers(state, options.layers)
    if options.removes_units:
        state = _prune_units(state, options, measured)
    if options.shrink and (options.removes_units or not (weights or options.layers or options.vocabulary)):
        found = shrink(state.model.config, state.model.params, state.leaf_axes, state.unit_axes(), even=options.even)
        state = state.replace(*found)
    if weights is not None:
        kept: tuple[SparsityRule, ...] = tuple(Rule(name, None) for name in _tuple(options.keep))
        rules = (*kept, *default_sparsity_rules(weights))
        params, report = sparsify(state.model.params, rules, _statistics(state.model, rules, options, measured))
        state = state.replace(state.model.config, params, report)
    report = compare_trees("prune", model.params, state.model.params, sources=state.sources, notes=state.notes)
    if not report.changed:
        raise ConfigError(
            "Nothing was pruned. Name what goes: --heads, --neurons, --layers, --vocabulary, --pattern or --rate; without them only heads and "
            "neurons that are zero already are taken out, and this model has none."
        )
    return state.model, report
