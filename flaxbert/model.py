"""The public model: a config and a tree of parameters, immutable, with what users do to it."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxbert import inference
from flaxbert.architecture import TASK_HEADS, TOKEN_SCORES, Execution, ModelConfig, resolve_task
from flaxbert.config import TaskConfig
from flaxbert.core.arrays import Params
from flaxbert.core.host_memory import place_on_device
from flaxbert.core.trees import is_stacked, stack_layers, unstack_layers
from flaxbert.data.sources import as_texts
from flaxbert.data.tokenization import TokenizedExamples, tokenize, warn_truncated
from flaxbert.errors import ConfigError, DataError
from flaxbert.nn.network import ModelOutput
from flaxbert.tasks.base import Encoded, Setting, setting_of
from flaxbert.tasks.registry import find_task, get_task
from flaxbert.tasks.sequence_classification import Prediction
from flaxbert.weights.hub import resolve
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.name_table import TensorAccount
from flaxbert.weights.save import save_checkpoint
from flaxbert.weights.sentence_transformers import SentencePooling
from flaxbert.weights.tokenizer import load_tokenizer

__all__ = ["Model", "Prediction", "load"]


@dataclasses.dataclass(frozen=True)
class Model:
    """A config, a tree of parameters and a tokenizer.

    Attributes:
      config: Architecture.
      params: Nested dictionary of arrays and typed arrays.
      task: Canonical task name.
      tokenizer: A fast Hugging Face tokenizer, or None.
      pooling: How token vectors become sentence vectors.
      execution: How the network is run: precision, attention, scan, rematerialisation.
      account: What the checkpoint's tensors were used for, where the model was loaded.
      engine: What computes instead of JAX where texts and files are run (``export.in_engine``), or None.
    """

    config: ModelConfig
    params: Params
    task: str
    tokenizer: Any = None
    pooling: SentencePooling | None = None
    execution: Execution = Execution()
    account: TensorAccount | None = None
    engine: inference.Engine | None = None

    def apply(
        self,
        params: Mapping[str, Any],
        batch: Mapping[str, Any],
        *,
        dropout_key: Any = None,
        keep_hidden: bool = False,
    ) -> ModelOutput:
        """Runs the network, compiled; a pure function of its arguments that can be differentiated and nested in other programs.

        Args:
          params: Parameter tree, usually ``model.params``.
          batch: ``input_ids`` and optionally ``attention_mask``, ``token_type_ids``, ``position_ids``, ``segment_ids``: int ``[batch, length]`` arrays or nested lists.
          dropout_key: A JAX key to switch dropout on.
          keep_hidden: Whether to return the hidden states after every block.

        Returns:
          The output with ``logits``, ``last_hidden_state``, ``pooled``…

        Raises:
          DataError: Ids lie outside the vocabulary, or the input is longer than the model's maximum.
        """
        batch = inference.checked_batch(self.config, batch)
        program = inference.compiled_apply(self.config, self.task, self.execution, keep_hidden)
        return program(params, batch, dropout_key)

    def replace(self, **changes: Any) -> "Model":
        """Returns a copy with some attributes changed, for example ``model.replace(params=quantized)``; without an engine made of others.

        Args:
          **changes: New values by attribute name.
        """
        stale = {"engine": None} if {"config", "params", "task", "execution"} & changes.keys() else {}
        return dataclasses.replace(self, **{**stale, **changes})

    @property
    def max_length(self) -> int:
        """Most tokens of one input, special tokens included."""
        limit = self.config.max_length
        declared = getattr(self.tokenizer, "model_max_length", None)
        chosen = self.pooling.max_length if self.pooling is not None and self.pooling.max_length else declared
        return min(limit, int(chosen)) if chosen else limit

    def _require_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ConfigError("The model has no tokenizer; load it from a folder with one, or use model.apply on ids.")
        return self.tokenizer

    def run_texts(
        self,
        texts: Any,
        pairs: Any,
        postprocess: inference.Postprocess,
        batch_size: int,
        max_length: int | None = None,
        keep_length: bool = False,
        truncation: str = "longest_first",
    ) -> list[np.ndarray]:
        """Tokenizes texts and runs the network on them.

        Args:
          texts: As for ``predict``.
          pairs: As for ``predict``.
          postprocess: What is returned of the network's output; traced, and compiled once per function.
          batch_size: Most texts computed together.
          max_length: Most tokens of an input; None: the model's maximum.
          keep_length: Whether results have a length axis.
          truncation: As for ``predict_logits``.

        Returns:
          What the function makes of the network's outputs, one result per input.

        Raises:
          ConfigError: The model has no tokenizer.
        """
        inputs = get_task("sequence-classification").inputs(texts, pairs)
        if not len(inputs):
            return []
        length, tokenizer = max_length or self.max_length, self._require_tokenizer()
        examples = tokenize(tokenizer, inputs.texts, inputs.pairs, max_length=length, truncation=truncation)
        return self._run_features(examples, postprocess, batch_size, length, keep_length)

    def _run_features(
        self,
        features: TokenizedExamples,
        postprocess: inference.Postprocess,
        batch_size: int,
        max_length: int,
        keep_length: bool,
    ) -> list[np.ndarray]:
        program = inference.program_of(self.config, self.task, self.execution, postprocess, self.engine)
        return inference.run_examples(
            program, self.params, features, batch_size=batch_size, max_length=max_length, keep_length=keep_length
        )

    def predict_logits(
        self,
        texts: Any,
        pairs: Any = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        truncation: str = "longest_first",
    ) -> np.ndarray | list[np.ndarray]:
        """Returns the raw scores of the task's head.

        Args:
          texts: A text, or texts as list, numpy array, pandas Series or DataFrame, or datasets Dataset; pairs as tuples.
          pairs: Second texts, or None.
          batch_size: Most texts computed together.
          max_length: Most tokens of a text. None: the model's maximum.
          truncation: longest_first, only_first, only_second, or error to refuse longer texts.

        Returns:
          float32 ``[texts, labels]``; for tasks with a score per token one ``[length, …]`` array per text.

        Raises:
          ConfigError: The model has no head.
          DataError: The input is not text.
        """
        if not TASK_HEADS[self.task]:
            raise ConfigError(f"A model for '{self.task}' has no head; load it with task='sequence-classification'.")
        task = find_task(self.task)
        per_token = self.task in TOKEN_SCORES if task is None else task.scores_tokens
        rows = self.run_texts(texts, pairs, inference.logits_of, batch_size, max_length, per_token, truncation)
        if per_token:
            return rows
        return np.stack(rows) if rows else np.zeros((0, self.config.num_labels), np.float32)

    def predict(
        self,
        texts: Any,
        pairs: Any = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        options: TaskConfig = TaskConfig(),
    ) -> list[Any]:
        """Makes the predictions of the model's task.

        Args:
          texts: As for ``predict_logits``; for question answering the questions.
          pairs: Second texts, or None; contexts for question answering, a list of choices for each multiple choice.
          batch_size: Most texts computed together.
          max_length: Most tokens of a text.
          options: What the task needs beyond texts.

        Returns:
          One prediction per text, in order: a ``Prediction`` with label and scores, a ``TaggedText`` with entities, an ``Answer``…

        Raises:
          ConfigError: The task makes no predictions of texts.
        """
        task = find_task(self.task)
        if task is None:
            raise ConfigError(f"A model of task '{self.task}' makes no predictions; use encode or predict_logits.")
        examples = task.inputs(texts, pairs)
        return self.predict_examples(examples, batch_size=batch_size, max_length=max_length, options=options)

    def predict_examples(
        self, examples: Any, *, batch_size: int = 32, max_length: int | None = None, options: TaskConfig = TaskConfig()
    ) -> list[Any]:
        """Makes a prediction for each example of the model's task.

        Args:
          examples: From the task's ``read`` or ``inputs``.
          batch_size: As for ``predict``.
          max_length: As for ``predict``.
          options: As for ``predict``.

        Returns:
          One prediction per example.
        """
        setting = setting_of(self.config, options, max_length or self.max_length)
        encoded, outputs = self.run_task(examples, setting, batch_size=batch_size)
        return get_task(self.task).decode(encoded, outputs, setting)

    def run_task(
        self, examples: Any, setting: Setting, *, batch_size: int = 32, labelled: bool = False
    ) -> tuple[Encoded, list[np.ndarray]]:
        """Tokenizes the examples of the model's task and runs the network on them.

        Args:
          examples: From the task's ``read`` or ``inputs``.
          setting: Labels, lengths and options.
          batch_size: Most inputs computed together.
          labelled: Whether the references are encoded too.

        Returns:
          The encoded examples, and the raw scores of their inputs.
        """
        task = get_task(self.task)
        encoded = task.encode(self._require_tokenizer(), examples, setting, labelled=labelled)
        warn_truncated({"": encoded.features}, setting.max_length, setting.data.truncation)
        return encoded, self._run_features(
            encoded.features, inference.logits_of, batch_size, setting.max_length, task.scores_tokens
        )

    def encode(
        self,
        texts: Any,
        *,
        batch_size: int = 32,
        normalize: bool | None = None,
        max_length: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Float[np.ndarray, "texts embed"]:
        """Turns texts into sentence vectors, pooled and normalised as the model's folder says.

        Args:
          texts: As for ``predict_logits``.
          batch_size: Most texts computed together.
          normalize: Whether vectors get length 1; None: as the folder says.
          max_length: Most tokens of a text.
          prompt_name: Name of a prompt of the folder that is put before every text, for example query; None: the folder's
            default, which is mostly none.
          prompt: The prompt itself, instead of a name; an empty text for none.

        Returns:
          float32 vectors, one row per text.

        Raises:
          ConfigError: The folder has no prompt of this name, or the model's task reads the first token alone.
          DataError: The input is not text.
        """
        pooling = self.pooling if self.pooling is not None else SentencePooling()
        lead = pooling.find_prompt(prompt_name) if prompt is None else prompt
        first, second = as_texts(texts)
        if second is not None:
            raise DataError("encode makes one vector of each text; hand in texts, not pairs.")
        skipped = 0
        if lead and not pooling.include_prompt:
            skipped = len(self._require_tokenizer()(lead)["input_ids"]) - 1  # all but the closing special token
        postprocess = inference.PooledVectors(tuple(pooling.modes), skipped)
        rows = self.run_texts([lead + text for text in first], None, postprocess, batch_size, max_length)
        width = self.config.hidden_size * len(pooling.modes)
        vectors = pooling.apply_dense(np.stack(rows) if rows else np.zeros((0, width), np.float32))
        if pooling.normalize if normalize is None else normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return np.asarray(vectors, np.float32)

    def with_execution(self, **changes: Any) -> "Model":
        """Returns the model run in another way, for example ``model.with_execution(precision="bfloat16")``.

        Args:
          **changes: Fields of ``Execution``; layers are stacked or unstacked as ``scan_layers`` asks.
        """
        execution = dataclasses.replace(self.execution, **changes)
        params = self.params
        if execution.scan_layers != is_stacked(params):
            params = stack_layers(params) if execution.scan_layers else unstack_layers(params)
        return self.replace(params=params, execution=execution)

    def save(
        self, path: str | pathlib.Path, *, overwrite: bool = False, files: Mapping[str, str] | None = None
    ) -> pathlib.Path:
        """Writes the model as a folder that flaxbert, transformers and sentence-transformers load.

        Args:
          path: The folder; made where it does not exist.
          overwrite: Whether an existing model there is replaced.
          files: Further text files by name, for example a model card as ``README.md``.

        Returns:
          The folder.

        Raises:
          WeightsError: The folder exists and holds something, or the disk is full; nothing half-written is left.
        """
        return save_checkpoint(
            path,
            config=self.config,
            task=self.task,
            params=self.params,
            tokenizer=self.tokenizer,
            pooling=self.pooling,
            overwrite=overwrite,
            files=files,
        )


def load(
    path_or_id: str | pathlib.Path,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    *,
    problem_type: str | None = None,
    precision: str = "float32",
    attention: str = "auto",
    scan_layers: bool = False,
    remat: str = "none",
    revision: str | None = None,
    offline: bool = False,
    from_scratch: bool = False,
    seed: int = 0,
) -> Model:
    """Loads a model from a folder or the hub, for a task.

    Args:
      path_or_id: Folder in Hugging Face or sentence-transformers layout, or an id on the hub.
      task: Task as the hub names it; None takes what the folder holds.
      labels: Label names for a new classifier; None keeps the folder's.
      problem_type: single_label_classification, multi_label_classification or regression; None keeps the folder's.
      precision: float32, bfloat16 or float16: type of activations and matrix products.
      attention: auto, xla, cudnn or splash.
      scan_layers: One scanned loop over stacked layers.
      remat: none, full, dots or attention: what a backward pass recomputes.
      revision: Branch, tag or commit on the hub.
      offline: Never contact the hub.
      from_scratch: Draw new weights for the architecture of the folder.
      seed: Seed of newly drawn weights.

    Returns:
      The model; ``model.account`` says what every tensor of the checkpoint was used for.

    Raises:
      ConfigError: The task, architecture or an option is not known.
      WeightsError: The folder is no model, or a tensor is missing, unexpected or of a wrong shape.

    Example:
      >>> load("sentence-transformers/all-MiniLM-L6-v2").encode(["A fine film."]).shape  # doctest: +SKIP
    """
    folder = resolve(str(path_or_id), revision=revision, offline=offline)
    loaded = load_checkpoint(
        folder,
        place=place_on_device,
        task=None if task is None else resolve_task(task),
        labels=None if labels is None else tuple(labels),
        problem_type=problem_type,
        seed=seed,
        from_scratch=from_scratch,
    )
    return Model(
        config=loaded.config,
        params=stack_layers(loaded.params) if scan_layers else loaded.params,
        task=loaded.task,
        tokenizer=load_tokenizer(folder, loaded.config),
        pooling=loaded.pooling,
        execution=Execution(precision, attention, scan_layers, remat),  # type: ignore[arg-type]
        account=loaded.account,
    )
