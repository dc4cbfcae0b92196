"""Bodies of requests and answers, as the OpenAPI page describes them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]
Text = str


class Body(BaseModel):
    """What all bodies have in common; unknown keys are passed over, as other servers do."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Truncated(Body):
    """How texts that are too long are treated."""

    truncate: bool | None = Field(
        default=None, description="Cut texts that are too long; by default as the server was told."
    )
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"


class EmbedTokensRequest(Truncated):
    """Texts or token ids."""

    inputs: Text | Ids | list[Text | Ids] = Field(examples=["A fine film."])
    prompt_name: str | None = None


class EmbedRequest(EmbedTokensRequest):
    """Texts or token ids to make vectors of."""

    normalize: bool = True
    dimensions: int | None = Field(default=None, ge=1)


class PredictRequest(Truncated):
    """A text, a pair ``[a, b]``, or a list of ``[a]`` and ``[a, b]``."""

    inputs: Text | list[Text | list[Text]] = Field(examples=["A fine film."])
    raw_scores: bool = False


class RerankRequest(Truncated):
    """A query and the texts that may answer it."""

    query: Text
    texts: list[Text]
    raw_scores: bool = False
    return_text: bool = False


class SimilarityInputs(Body):
    """One text and others."""

    source_sentence: Text
    sentences: list[Text]


class SimilarityParameters(Truncated):
    """How they are read."""

    prompt_name: str | None = None


class SimilarityRequest(Body):
    """One text and those that it is compared with."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TokenizeRequest(Body):
    """Texts."""

    inputs: Text | list[Text]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(Body):
    """Token ids."""

    ids: Ids | list[Ids]
    skip_special_tokens: bool = True


class NerRequest(Body):
    """Texts to find entities in."""

    inputs: Text | list[Text]


class Question(Body):
    """A question and where its answer stands."""

    question: Text
    context: Text


class QaParameters(Body):
    """What answers may be."""

    top_k: int = Field(default=1, ge=1, le=100)
    max_answer_len: int | None = Field(default=None, ge=1, le=512)
    handle_impossible_answer: bool = True


class QaRequest(Body):
    """One question or several."""

    inputs: Question | list[Question]
    parameters: QaParameters | None = None


class FillMaskParameters(Truncated):
    """Which words are shown."""

    top_k: int = Field(default=5, ge=1)
    targets: list[Text] | None = None


class FillMaskRequest(Body):
    """Texts with masks."""

    inputs: Text | list[Text] = Field(examples=["Paris is the [MASK] of France."])
    parameters: FillMaskParameters | None = None


class ZeroShotParameters(Truncated):
    """The labels."""

    candidate_labels: list[Text]
    multi_label: bool = False
    hypothesis_template: str | None = None


class ZeroShotRequest(Body):
    """Texts and labels that the model never saw."""

    inputs: Text | list[Text]
    parameters: ZeroShotParameters


class InvokeRequest(Body):
    """What the model's own task takes, as the inference API of the hub has it."""

    inputs: Any
    parameters: dict[str, Any] | None = None


class OpenAIRequest(Body):
    """Texts or token ids, as OpenAI's API has them."""

    input: Text | Ids | list[Text] | list[Ids]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None


class InstancesRequest(Body):
    """Several inputs of the model's own task."""

    instances: list[Any] | None = None
    inputs: Any = None
    parameters: dict[str, Any] | None = None


class TensorIn(Body):
    """A tensor of the Open Inference Protocol."""

    name: str
    shape: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(max_length=64)
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Any = None


class TensorWanted(Body):
    """A tensor that is asked for."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(Body):
    """Tensors of the Open Inference Protocol."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[TensorIn]
    outputs: list[TensorWanted] | None = None


class Failure(BaseModel):
    """Why there is no answer."""

    error: str
    error_type: str
