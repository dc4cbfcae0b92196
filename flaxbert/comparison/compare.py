"""What ``flaxbert compare`` does: models in, a comparison out. Models are loaded one at a time where the measure allows it."""

import dataclasses
import datetime
import gc
from collections.abc import Sequence
from typing import Any

import jax

from flaxbert.comparison.deviations import (
    HiddenStates,
    hidden_states,
    layer_errors,
    output_error,
    weight_errors,
)
from flaxbert.comparison.folders import ModelFolder, find_folders
from flaxbert.comparison.loading import measure_loading
from flaxbert.comparison.quality import check_quality, judge_model, quality_of, reference_labels, why_not_judged
from flaxbert.comparison.results import Comparison, ModelResult
from flaxbert.comparison.settings import ComparisonSettings
from flaxbert.comparison.speed import Latency, measure_speed, model_products
from flaxbert.comparison.texts import padded_batch, random_examples, texts_for, tokenized
from flaxbert.config import DataConfig, TaskConfig
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, FlaxbertError
from flaxbert.evaluation.score import Judged
from flaxbert.model import Model
from flaxbert.train.provenance import device_summary, library_versions, machine, public_name

USUAL_LENGTH = 128
"""Tokens of the rows that are timed where none are named."""


@dataclasses.dataclass(frozen=True)
class _Reference:
    """What the measures of other models need of the reference."""

    model: Model
    texts: tuple[str, ...] | None
    examples: TokenizedExamples
    hidden: HiddenStates
    judged: Judged | None


def compare_models(
    sources: Sequence[str],
    settings: ComparisonSettings = ComparisonSettings(),
    data: DataConfig = DataConfig(max_length=0),
    task: TaskConfig = TaskConfig(),
    *,
    command: str = "",
) -> Comparison:
    """Compares models with the first of them.

    Every folder is opened once before anything is measured. Size, quality and errors are then measured model by model, with the
    reference beside it; speed with ``settings.together`` models at once, the reference among them each time.

    Args:
      sources: Folders and hub ids, the reference first.
      settings: What is measured.
      data: Where labels and texts stand in the examples.
      task: What the task needs beyond texts and labels.
      command: The command that repeats the comparison.

    Returns:
      What was found.

    Raises:
      ConfigError: There is one model only, a setting does not fit, or the reference can not be scored on examples.
      WeightsError: A folder is no model; names it.
      DataError: The examples are malformed or do not fit the reference.
    """
    platform = jax.default_backend()
    folders = find_folders(
        sources, names=settings.names, platform=platform, precision=settings.precision, offline=settings.offline
    )
    lengths = _lengths(settings, folders)
    if settings.examples:
        check_quality(folders[0])
    reference, results = _measure_reference(folders[0], settings, data, task, lengths)
    results = [
        results,
        *(_measure(folder, reference, folders[0], settings, data, task, lengths) for folder in folders[1:]),
    ]
    texts = reference.texts
    del reference
    results = _add_speed(results, settings, texts, lengths)
    if settings.loading:
        results = [dataclasses.replace(entry, loading=measure_loading(entry.folder.folder)) for entry in results]
    return Comparison(
        models=tuple(results),
        settings=dataclasses.replace(settings, lengths=lengths),
        source=public_name(settings.examples),
        command=command,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine(),
        devices=device_summary(),
        versions=library_versions(),
    )


def _lengths(settings: ComparisonSettings, folders: Sequence[ModelFolder]) -> tuple[int, ...]:
    """Returns the lengths that are timed; refuses those that the reference can not take."""
    shortest = min(folder.config.max_length for folder in folders)
    lengths = settings.lengths or (min(USUAL_LENGTH, shortest),)
    limit = folders[0].config.max_length
    if max(lengths) > limit:
        raise ConfigError(
            f"compare.lengths holds {max(lengths)}, but the reference '{folders[0].name}' takes at most {limit} tokens."
        )
    return lengths


def _load(folder: ModelFolder, settings: ComparisonSettings, labels: Sequence[str] | None = None) -> Model:
    try:
        return folder.load(settings.precision, settings.attention, labels)
    except FlaxbertError as error:
        raise type(error)(f"Model '{folder.name}' can not be compared: {error}") from error


def _measure_reference(
    folder: ModelFolder,
    settings: ComparisonSettings,
    data: DataConfig,
    task: TaskConfig,
    lengths: Sequence[int],
) -> tuple[_Reference, ModelResult]:
    model = _load(folder, settings)
    judged = judge_model(model, data, settings.examples, task, settings.batch_size) if settings.examples else None
    tokens = min(USUAL_LENGTH, model.config.max_length)
    texts = None
    if model.tokenizer is not None:
        known = () if judged is None else judged.texts
        most, longest = settings.num_texts, max(1, tokens // 2)
        texts = tuple(texts_for(model.tokenizer, settings.texts, data, known, most, longest, settings.seed))
    elif settings.texts:
        raise ConfigError(
            f"'{folder.name}' has no tokenizer, so that {settings.texts} can not be read; leave out --texts."
        )
    examples = _examples(model, texts, settings)
    hidden = hidden_states(model, padded_batch(model.task, examples))
    quality = None if judged is None else quality_of(judged, num_resamples=settings.num_resamples)
    products = model_products(model, examples, settings.batch_sizes[-1], lengths[0])
    result = ModelResult(folder=folder, products=products, quality=quality)
    return _Reference(model, texts, examples, hidden, judged), result


def _examples(model: Model, texts: Sequence[str] | None, settings: ComparisonSettings) -> TokenizedExamples:
    tokens = min(USUAL_LENGTH, model.config.max_length)
    if texts is None or model.tokenizer is None:
        return random_examples(model, settings.num_texts, tokens, settings.seed)
    return tokenized(model, texts, tokens)


def _measure(
    folder: ModelFolder,
    reference: _Reference,
    reference_folder: ModelFolder,
    settings: ComparisonSettings,
    data: DataConfig,
    task: TaskConfig,
    lengths: Sequence[int],
) -> ModelResult:
    """Measures one model beside the reference, all but its speed."""
    refused: dict[str, str] = {}
    found: dict[str, Any] = {}
    reason = why_not_judged(folder, reference_folder) if reference.judged is not None else ""
    labels = None if reason else reference_labels(folder, reference_folder)
    model = _load(folder, settings, labels)
    if reason:
        refused["quality"] = reason
    elif reference.judged is not None:
        try:
            judged = judge_model(model, data, settings.examples, task, settings.batch_size)
            found["quality"] = quality_of(judged, reference.judged, settings.num_resamples)
        except FlaxbertError as error:
            refused["quality"] = str(error)
    _add_deviations(found, refused, model, reference)
    examples = _examples(model, reference.texts, settings)
    fitting = [length for length in lengths if length <= folder.config.max_length]
    if fitting:
        found["products"] = model_products(model, examples, settings.batch_sizes[-1], fitting[0])
    if len(fitting) < len(lengths):
        refused["speed"] = f"it takes at most {folder.config.max_length} tokens, so that longer rows were not timed."
    del model
    gc.collect()
    return ModelResult(folder=folder, refused=refused, **found)


def _add_deviations(found: dict[str, Any], refused: dict[str, str], model: Model, reference: _Reference) -> None:
    """Adds the errors of hidden states and weights, or why there are none."""
    same_layers = model.config.num_hidden_layers == reference.model.config.num_hidden_layers
    reason = _why_other_tokens(model, reference)
    if reason:
        refused["hidden states"] = reason
    else:
        hidden = hidden_states(model, padded_batch(model.task, reference.examples))
        try:
            found["layers"] = layer_errors(hidden, reference.hidden)
        except ConfigError as error:
            refused["hidden states"] = str(error)
        if model.task == reference.model.task and model.config.label_names == reference.model.config.label_names:
            found["output_error"] = output_error(hidden, reference.hidden)
    if model.config.family != reference.model.config.family:
        refused["weights"] = f"it is a {model.config.family}, the reference a {reference.model.config.family}."
        return
    weights = weight_errors(model.params, reference.model.params, same_layers)
    if weights.leaves:
        found["weights"] = weights
    else:
        name, why = next(iter(weights.left_out.items()))
        refused["weights"] = f"no leaf has a counterpart in the reference; of {name}: {why}"


def _why_other_tokens(model: Model, reference: _Reference) -> str:
    """Returns why a model can not be run on the reference's tokens; empty where it can."""
    theirs = reference.examples
    longest = int(theirs.lengths.max())
    if longest > model.config.max_length:
        return f"it takes at most {model.config.max_length} tokens, the texts have up to {longest}."
    if reference.texts is None or model.tokenizer is None:
        sizes = model.config.vocab_size, reference.model.config.vocab_size
        return "" if sizes[0] == sizes[1] else f"its vocabulary has {sizes[0]} tokens, the reference's {sizes[1]}."
    mine = tokenized(model, reference.texts, min(USUAL_LENGTH, reference.model.config.max_length))
    same = len(mine.input_ids) == len(theirs.input_ids) and bool((mine.input_ids == theirs.input_ids).all())
    return "" if same else "its tokenizer cuts the texts into other tokens than the reference's."


def _add_speed(
    results: Sequence[ModelResult],
    settings: ComparisonSettings,
    texts: Sequence[str] | None,
    lengths: Sequence[int],
) -> list[ModelResult]:
    """Times the models in groups, the reference with each."""
    first, others, size = results[0], list(results[1:]), settings.together - 1
    timed: dict[str, list[Latency]] = {}
    for start in range(0, len(others), size):
        group = [first, *others[start : start + size]]
        models = [_load(entry.folder, settings) for entry in group]
        examples = [_examples(model, texts, settings) for model in models]
        latencies = measure_speed(models, examples, settings.batch_sizes, lengths, settings.rounds)
        for entry, found in zip(group, latencies, strict=True):
            timed.setdefault(entry.folder.name, found)  # the reference keeps the figures of its first group
        del models
        gc.collect()
    return [dataclasses.replace(entry, latencies=tuple(timed[entry.folder.name])) for entry in results]
