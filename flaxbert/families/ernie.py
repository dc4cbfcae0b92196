"""ERNIE 1.0 to 3.0 (Sun et al., 2019 and 2020): BERT with, where the config says so, an embedding of the task."""

import dataclasses
import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.rules import Rule
from flaxbert.families.base import TensorName
from flaxbert.families.bert import TENSORS as BERT_TENSORS
from flaxbert.families.bert import TIED
from flaxbert.families.config_json import ConfigMapping
from flaxbert.families.layout import AXIS_RULES, class_names, make_family
from flaxbert.nn.embeddings import Embeddings
from flaxbert.nn.layers import Embed
from flaxbert.nn.network import Network
from flaxbert.nn.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class ErnieOptions:
    """What ERNIE alone has.

    Attributes:
      task_type_vocab_size: Rows of the embedding of tasks.
      use_task_id: Whether there is one.
    """

    task_type_vocab_size: int = 3
    use_task_id: bool = False


class ErnieEmbeddings(Embeddings):
    """BERT's embeddings and a row for the task (Sun et al., 2020, section 4.1).

    Args:
      config: Architecture.
      execution: Precision.
      rngs: Source of keys for new weights.
    """

    def __init__(self, config: ModelConfig, execution: Execution, rngs: nnx.Rngs) -> None:
        super().__init__(config, execution, rngs)
        options = config.own(ErnieOptions)
        if options.use_task_id:
            rows, width = options.task_type_vocab_size, config.embedding_width
            self.task_type = Embed(rows, width, config.initializer_range, rngs)

    def sum_rows(self, tokens: Tokens) -> Float[Array, "batch length embedding"]:
        """Returns the sum of all rows of each token; without task types, the row of task 0."""
        summed = super().sum_rows(tokens)
        if not hasattr(self, "task_type"):
            return summed
        tasks = jnp.zeros_like(tokens.input_ids) if tokens.task_type_ids is None else tokens.task_type_ids
        return summed + self.task_type(tasks)


ARCHITECTURES = class_names(
    "Ernie", next_sentence_prediction="ErnieForNextSentencePrediction", pretraining="ErnieForPreTraining"
)

CONFIG = ConfigMapping(
    "ernie",
    ARCHITECTURES,
    options=ErnieOptions,
    option_fields={"task_type_vocab_size": ("task_type_vocab_size", int), "use_task_id": ("use_task_id", bool)},
)

ERNIE = make_family(
    CONFIG,
    prefix="ernie",
    tensors=(
        *BERT_TENSORS,
        TensorName("embeddings.task_type.embedding", "embeddings.task_type_embeddings.weight"),
    ),
    tied=TIED,
    axis_rules=(Rule(r"embeddings\.task_type\.embedding", ("task_types", "embedding"), optional=True), *AXIS_RULES),
    network=functools.partial(Network, embeddings=ErnieEmbeddings),
    own_axes={"task_types": lambda config: config.own(ErnieOptions).task_type_vocab_size},
)
