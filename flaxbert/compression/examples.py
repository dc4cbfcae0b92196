"""Examples that a model is calibrated on or judged by while it is compressed."""

import dataclasses
from typing import Any

import numpy as np

from flaxbert.config import DataConfig, TaskConfig
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.predict import read_inputs
from flaxbert.evaluation.score import read_labelled
from flaxbert.model import Model
from flaxbert.tasks.base import Scored, Setting, Task, setting_of
from flaxbert.tasks.registry import TASKS, find_task


def read_calibration(
    model: Model, source: str, config: DataConfig, num_examples: int, seed: int = 0, options: TaskConfig = TaskConfig()
) -> TokenizedExamples:
    """Reads texts to calibrate on; labels, where there are some, are not needed.

    Args:
      model: The model.
      source: File of texts (one a line, or a table), or of the task's own format.
      config: Columns and format of a table.
      num_examples: Most examples, drawn from all over the file; 0 for all.
      seed: Draws them.
      options: What the task needs beyond texts.

    Returns:
      The tokenized examples.

    Raises:
      ConfigError: No file is named.
      DataError: The file can not be read, has no text, or is not of the model's task.
    """
    if not source:
        raise ConfigError(
            "Nothing is known of the inputs: name a file of texts such as the model will see (--calibration FILE)."
        )
    if model.tokenizer is None:
        raise ConfigError("The model has no tokenizer, so texts can not be read for calibration.")
    task = find_task(model.task) or TASKS["sequence-classification"]
    examples = read_inputs(model, (), source, config, options=options)
    chosen = np.random.default_rng(seed).permutation(len(examples))[: num_examples or None]
    setting = setting_of(model.config, options, min(config.max_length or model.max_length, model.max_length), config)
    if not len(chosen):
        raise DataError(f"{source} holds no text to calibrate on.")
    return task.encode(model.tokenizer, examples.select(np.sort(chosen)), setting, labelled=False).features


@dataclasses.dataclass(frozen=True)
class Judge:
    """Labelled examples by which compressed copies of a model are judged.

    Attributes:
      task: The task.
      examples: The examples.
      setting: Labels and lengths.
      metric: The metric that decides; the higher, the better.
    """

    task: Task
    examples: Any
    setting: Setting
    metric: str

    def score(self, model: Model) -> Scored:
        """Returns how well a model does.

        Args:
          model: The model.
        """
        encoded, outputs = model.run_task(self.examples, self.setting, labelled=True)
        return self.task.score(encoded, outputs, self.setting)

    def measure(self, model: Model) -> float:
        """Returns the metric that decides.

        Args:
          model: The model.
        """
        return float(self.score(model).metrics[self.metric])

    def features(self, model: Model) -> TokenizedExamples:
        """Returns the examples with labels, as the network takes them.

        Args:
          model: The model, for its tokenizer.
        """
        return self.task.encode(model.tokenizer, self.examples, self.setting, labelled=True).features


def read_judge(model: Model, source: str, config: DataConfig, options: TaskConfig = TaskConfig()) -> Judge:
    """Reads labelled examples of a model's task.

    Args:
      model: The model.
      source: File, folder or hub id.
      config: Columns and format.
      options: What the task needs.

    Returns:
      The examples, with the task's first metric.

    Raises:
      ConfigError: The task can not be scored, no examples are named, or a lower value of its metric is better.
      DataError: The examples are malformed or hold labels that the model does not know.
    """
    task, examples, setting = read_labelled(model, config, source, options)
    metric, higher = task.primary(setting)
    if not higher:
        raise ConfigError(
            f"The metric {metric} is better when lower, but a tolerance is of a metric that is better when higher."
        )
    return Judge(task, examples, setting, metric)
