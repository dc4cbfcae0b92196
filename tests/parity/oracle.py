"""Stock transformers on torch as the oracle: odd random models, and the distance that float32 itself has from float64."""

import copy
import dataclasses
import inspect
import json
import pathlib
import warnings
from typing import Any

import numpy as np
import pytest

from flaxbert.architecture import Execution, ModelConfig, resolve_task
from flaxbert.core.trees import flatten_names
from flaxbert.families import FAMILIES, get_family
from flaxbert.families.graph import forward, graph_definition
from flaxbert.weights.load import LoadedCheckpoint, load_checkpoint

TOLERANCE = 1e-5
"""Largest difference of logits, relative to the larger of 1 and the largest logit."""

SHARE_OF_TORCH_ERROR = 3.0
"""Or this many times the distance that torch in float32 has from torch in float64, where that is more."""

GRADIENT_TOLERANCE = 1e-4
"""Largest difference of a gradient, as a share of the model's largest gradient."""

torch = pytest.importorskip("torch", reason="needs the test extra")


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and how it is fed."""

    name: str
    task: str = "sequence-classification"
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    padding: str = "right"
    length: int = 13
    batch: int = 3
    family: str = "bert"

    @property
    def architecture(self) -> str:
        """Name of the stock class; of heads that transformers has not, that of the encoder below them."""
        name = get_family(self.family).architectures[self.task]
        return get_family(self.family).architectures["feature-extraction"] if self.has_own_head else name

    @property
    def has_own_head(self) -> bool:
        """Whether transformers has no class of this kind, so that its encoder with the head built on it is the oracle."""
        return self.task in OWN_HEADS or (self.task == "replaced-token-detection" and self.family != "electra")

    @property
    def settings(self) -> dict[str, Any]:
        """Keys of the stock config."""
        fixed = {"num_labels": 2} if self.task in TWO_OUTPUTS else {}
        return {**BASE, **FAMILY_BASE.get(self.family, {}), **self.config, **fixed}


BASE = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "num_labels": 3,
}


_AFTER_PADDING = {"pad_token_id": 1, "max_position_embeddings": 22, "type_vocab_size": 1}
_SUMMARY = {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"}
_RELATIVE = {"relative_attention": True, "position_biased_input": False, "type_vocab_size": 0}
_SHARED_TABLE = {"norm_rel_ebd": "layer_norm", "share_att_key": True}
FAMILY_BASE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _AFTER_PADDING),
    "mpnet": {**_AFTER_PADDING, "type_vocab_size": 0},
    "electra": {"embedding_size": 10},
    "distilbert": {"type_vocab_size": 0},
    "albert": {"embedding_size": 10},
    "convbert": {"embedding_size": 10, "num_attention_heads": 4, "conv_kernel_size": 3, "pad_token_id": 0, **_SUMMARY},
    "ernie": {"use_task_id": True},
    "modernbert": {
        "type_vocab_size": 0,
        "num_hidden_layers": 3,
        "local_attention": 8,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    },
    "deberta": {**_RELATIVE, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {**_RELATIVE, "pos_att_type": "p2c|c2p", "position_buckets": 6, **_SHARED_TABLE},
}
"""What differs from ``BASE`` in other families."""

OWN_KEYS = {
    "distilbert": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
    "modernbert": {"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"},
}
"""Keys of stock configs that are called otherwise than BERT's."""

READS_PADDING = frozenset(family.model_type for family in FAMILIES.values() if family.stock_reads_padding)
"""Families whose stock classes let padding change the results of a text; they are asked for one text at a time."""

TWO_OUTPUTS = frozenset({"question-answering", "next-sentence-prediction", "pretraining"})
"""Tasks whose stock classes build as many outputs as there are labels, although only two make sense."""

OWN_HEADS = frozenset({"relation-classification", "late-interaction"})
"""Tasks that transformers has no class for; their oracle is the encoder with the head built on it."""


class RelationModel(torch.nn.Module):
    """Entity vectors of R-BERT over a stock encoder."""

    def __init__(self, encoder: Any, prefix: str, num_labels: int) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.prefix, self.config = prefix, encoder.config
        setattr(self, prefix, encoder)
        for name, sizes in {
            "cls_fc_layer": (width, width),
            "entity_fc_layer": (width, width),
            "label_classifier": (3 * width, num_labels),
        }.items():
            setattr(self, name, torch.nn.ModuleDict({"linear": torch.nn.Linear(*sizes)}))

    def forward(self, entity_mask: Any, **inputs: Any) -> Any:
        hidden = getattr(self, self.prefix)(**inputs).last_hidden_state
        means = []
        for number in (1, 2):
            mask = (entity_mask == number).to(hidden.dtype)[..., None]
            means.append((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9))
        first = self.cls_fc_layer["linear"](torch.tanh(hidden[:, 0]))
        entities = [self.entity_fc_layer["linear"](torch.tanh(mean)) for mean in means]
        return Outputs(logits=self.label_classifier["linear"](torch.cat([first, *entities], dim=-1)))


class LateInteractionModel(torch.nn.Module):
    """Projected, normalised token vectors of ColBERT over a stock encoder."""

    def __init__(self, encoder: Any, prefix: str, width: int) -> None:
        super().__init__()
        self.prefix, self.config = prefix, encoder.config
        setattr(self, prefix, encoder)
        self.linear = torch.nn.Linear(encoder.config.hidden_size, width, bias=False)

    def forward(self, **inputs: Any) -> Any:
        hidden = getattr(self, self.prefix)(**inputs).last_hidden_state
        return Outputs(logits=torch.nn.functional.normalize(self.linear(hidden), dim=-1))


class ReplacedTokenModel(torch.nn.Module):
    """DeBERTa 3's discriminator over a stock encoder: every token beside the first one decides whether it was replaced."""

    def __init__(self, encoder: Any, prefix: str) -> None:
        super().__init__()
        config, width = encoder.config, encoder.config.hidden_size
        self.prefix, self.config = prefix, config
        setattr(self, prefix, encoder)
        self.mask_predictions = torch.nn.ModuleDict(
            {
                "dense": torch.nn.Linear(width, width),
                "LayerNorm": torch.nn.LayerNorm(width, config.layer_norm_eps),
                "classifier": torch.nn.Linear(width, 1),
            }
        )

    def forward(self, **inputs: Any) -> Any:
        from transformers.activations import ACT2FN

        hidden, head = getattr(self, self.prefix)(**inputs).last_hidden_state, self.mask_predictions
        activated = ACT2FN[self.config.hidden_act](head["dense"](head["LayerNorm"](hidden + hidden[:, :1])))
        return Outputs(logits=head["classifier"](activated).squeeze(-1))


PUBLISHED_CLASSES: dict[type, str] = {
    RelationModel: "RBERT",
    LateInteractionModel: "HF_ColBERT",
    ReplacedTokenModel: "ReplacedTokenDetectionModel",
}
"""What published models of each kind call their class."""


@dataclasses.dataclass
class Outputs:
    """What the models above return."""

    logits: Any


def make_torch_model(case: Case, seed: int = 0) -> Any:
    """Returns a stock model whose every parameter is random, biases and norms too."""
    import transformers

    torch.manual_seed(seed)
    settings = transformers.AutoConfig.for_model(
        case.family, **{OWN_KEYS.get(case.family, {}).get(key, key): value for key, value in case.settings.items()}
    )
    model = getattr(transformers, case.architecture)(settings)
    prefix = get_family(case.family).prefix
    if case.task == "relation-classification":
        model = RelationModel(model, prefix, case.settings["num_labels"])
    elif case.task == "late-interaction":
        model = LateInteractionModel(model, prefix, 5)
    elif case.has_own_head:
        model = ReplacedTokenModel(model, prefix)
    model = model.eval()
    generator = torch.Generator().manual_seed(seed)
    fixed = {"distilbert": ("position_embeddings",)} if case.settings.get("sinusoidal_pos_embds") else {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in fixed.get(case.family, ())):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.lower().replace("_", "").endswith("norm.weight")
            parameter.copy_(
                1.0 + 0.3 * noise if is_norm else noise * (0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
            )
    return model


def make_batch(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random ids of random lengths, padded on the side that the case says."""
    random = np.random.default_rng(seed)
    settings = case.settings
    choices = 2 if case.task == "multiple-choice" else 1
    rows = case.batch * choices
    ids = random.integers(5, settings["vocab_size"], (rows, case.length)).astype(np.int32)
    lengths = random.integers(min(5, case.length), case.length + 1, rows)
    lengths[0] = case.length
    if case.padding == "none":
        lengths[:] = case.length
    left = case.padding == "left" and case.family not in READS_PADDING
    if case.family == "modernbert" and case.task in ("sequence-classification", "relation-classification"):
        left = False  # a window of padding alone, as around a padded first token, means nothing in stock either
    columns = np.arange(case.length)[None]
    real = columns >= case.length - lengths[:, None] if left else columns < lengths[:, None]
    batch = {
        "input_ids": np.where(real, ids, settings.get("pad_token_id", 0)),
        "attention_mask": real.astype(np.int32),
    }
    if settings["type_vocab_size"]:
        batch["token_type_ids"] = random.integers(0, settings["type_vocab_size"], ids.shape).astype(np.int32) * real
    if case.family == "ernie" and case.task != "multiple-choice":  # whose stock class forgets to flatten these
        batch["task_type_ids"] = random.integers(0, 3, ids.shape).astype(np.int32) * real
    if case.task == "relation-classification":
        place = np.cumsum(real, axis=1) * real
        batch["entity_mask"] = np.select([(place >= 2) & (place <= 3), place == 4], [1, 2], 0).astype(np.int32)
    if case.task == "multiple-choice":
        batch = {name: array.reshape(case.batch, choices, -1) for name, array in batch.items()}
    return batch


def to_torch(model: Any, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns what of a batch the model takes."""
    stock = getattr(model, getattr(model, "prefix", ""), model)
    known = set(inspect.signature(stock.forward).parameters) | ({"entity_mask"} if stock is not model else set())
    return {name: torch.tensor(array, dtype=torch.long) for name, array in batch.items() if name in known}


def _named_outputs(output: Any) -> dict[str, Any]:
    if hasattr(output, "prediction_logits"):
        pair = output.sop_logits if hasattr(output, "sop_logits") else output.seq_relationship_logits
        return {"logits": output.prediction_logits, "next_sentence_logits": pair}
    if hasattr(output, "start_logits"):
        return {"logits": torch.stack([output.start_logits, output.end_logits], dim=-1)}
    if hasattr(output, "logits"):
        return {"logits": output.logits}
    found = {"last_hidden_state": output.last_hidden_state, "pooled": getattr(output, "pooler_output", None)}
    return {name: value for name, value in found.items() if value is not None}


def torch_outputs(model: Any, batch: dict[str, np.ndarray], dtype: Any, alone: bool = False) -> dict[str, np.ndarray]:
    """Returns a stock model's outputs by the names that flaxbert gives them; row by row without padding where asked for."""
    model = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        found = one_by_one(model, batch) if alone else _named_outputs(model(**to_torch(model, batch)))
    return {name: value.double().numpy() for name, value in found.items()}


def one_by_one(model: Any, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Runs every text of a batch without its padding; what stands at padding in the results is 0."""
    shape = batch["input_ids"].shape
    flat = {name: array.reshape(-1, shape[-1]) for name, array in batch.items()}
    collected: dict[str, list[Any]] = {}
    for row, mask in enumerate(flat["attention_mask"] == 1):
        single = {name: array[row : row + 1, mask] for name, array in flat.items()}
        if len(shape) == 3:
            single = {name: array[:, None] for name, array in single.items()}
        for name, value in _named_outputs(model(**to_torch(model, single))).items():
            if value.ndim > 1 and value.shape[1] == mask.sum() and len(shape) == 2 and name != "pooled":
                whole = torch.zeros(1, shape[-1], *value.shape[2:], dtype=value.dtype)
                whole[:, torch.tensor(mask)] = value
                value = whole
            collected.setdefault(name, []).append(value)
    joined = {name: torch.cat(values) for name, values in collected.items()}
    return {name: value.reshape(shape[:2]) for name, value in joined.items()} if len(shape) == 3 else joined


def save_torch(model: Any, folder: pathlib.Path) -> pathlib.Path:
    """Saves a stock model, or one of the models above with the tensors and class names of the published ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not hasattr(model, "prefix"):
            model.save_pretrained(folder)
            return folder
        from safetensors.torch import load_file, save_file

        encoder = getattr(model, model.prefix)
        encoder.save_pretrained(folder)
        described = json.loads((folder / "config.json").read_text())
        described["architectures"] = [PUBLISHED_CLASSES[type(model)]]
        (folder / "config.json").write_text(json.dumps(described))
        tensors = {f"{model.prefix}.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
        heads = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{model.prefix}.")}
        tensors |= {name: tensor.contiguous() for name, tensor in heads.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load_torch(folder: pathlib.Path, case: Case) -> Any:
    """Loads a folder with stock transformers and fails if any weight is missing or left over."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = getattr(transformers, case.architecture).from_pretrained(folder, output_loading_info=True)
    if not case.has_own_head:
        problems = {key: sorted(value) for key, value in info.items() if value}
        assert not problems, problems
        return model.eval()
    from safetensors.torch import load_file

    assert all("pooler" in name for name in info["missing_keys"]), info["missing_keys"]
    whole = make_torch_model(case, seed=99)
    setattr(whole, whole.prefix, model)
    heads = {name for name in whole.state_dict() if not name.startswith(f"{whole.prefix}.")}
    stored = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name in heads}
    assert set(stored) == heads
    whole.load_state_dict(stored, strict=False)
    return whole.eval()


def our_outputs(
    config: ModelConfig, task: str, params: Any, batch: dict[str, np.ndarray], execution: Execution | None = None
) -> dict[str, np.ndarray]:
    """Returns flaxbert's outputs, compiled."""
    import jax

    graphdef = graph_definition(config, resolve_task(task), execution or Execution())
    output = jax.jit(lambda params, batch: forward(graphdef, params, batch))(params, batch)
    names = ("logits", "next_sentence_logits", "last_hidden_state", "pooled")
    return {name: np.asarray(getattr(output, name), np.float64) for name in names if getattr(output, name) is not None}


def load_ours(folder: pathlib.Path, task: str | None = None) -> LoadedCheckpoint:
    """Loads a folder with flaxbert."""
    return load_checkpoint(folder, task)


def only_real(array: np.ndarray, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Returns outputs per token at real tokens only: what stands at padding means nothing."""
    mask = batch["attention_mask"] == 1
    return array[mask] if mask.ndim == 2 and array.shape[:2] == mask.shape else array


def worst_excess(
    ours: dict[str, np.ndarray],
    float32: dict[str, np.ndarray],
    float64: dict[str, np.ndarray],
    batch: dict[str, np.ndarray] | None = None,
) -> float:
    """Returns the largest difference from torch as a share of what is allowed; at most 1 passes."""
    worst = 0.0
    for name, reference in float32.items():
        mine, exact = ours[name], float64[name]
        if batch is not None:
            mine, reference, exact = (only_real(array, batch) for array in (mine, reference, exact))
        own = np.abs(reference - exact).max()
        allowed = max(TOLERANCE * max(1.0, np.abs(reference).max()), SHARE_OF_TORCH_ERROR * own)
        worst = max(worst, float(np.abs(mine - reference).max() / allowed))
    return worst


def both_outputs(model: Any, batch: dict[str, np.ndarray], family: str = "bert") -> list[dict[str, np.ndarray]]:
    """Returns a stock model's outputs in float32 and float64."""
    alone = family in READS_PADDING
    return [torch_outputs(model, batch, dtype, alone) for dtype in (torch.float32, torch.float64)]


def random_weights(
    outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], seed: int = 0
) -> dict[str, np.ndarray]:
    """Returns random factors of the outputs, 0 at padding, whose weighted sum has a gradient everywhere."""
    random = np.random.default_rng(seed)
    weights = {}
    mask = batch["attention_mask"] == 1
    for name, array in outputs.items():
        factors = random.standard_normal(array.shape)
        if mask.ndim == 2 and array.shape[:2] == mask.shape:
            factors = factors * mask.reshape(*mask.shape, *(1,) * (array.ndim - 2))
        weights[name] = factors.astype(np.float32)
    return weights


def torch_gradients(
    model: Any, batch: dict[str, np.ndarray], weights: dict[str, np.ndarray], folder: pathlib.Path, alone: bool = False
) -> dict[str, np.ndarray]:
    """Returns the gradients of the weighted sum of outputs by the tensor names of a saved model, in float64.

    They are saved in the place of the parameters, so that what a family renames or joins on saving is so for them too.
    """
    from safetensors.numpy import load_file

    model = copy.deepcopy(model).double()
    outputs = one_by_one(model, batch) if alone else _named_outputs(model(**to_torch(model, batch)))
    total = sum((outputs[name] * torch.tensor(factors).double()).sum() for name, factors in weights.items())
    total.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return load_file(save_torch(model, folder) / "model.safetensors")


def our_gradients(loaded: LoadedCheckpoint, batch: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> Any:
    """Returns the same gradients as a parameter tree."""
    import jax
    import jax.numpy as jnp

    graphdef = graph_definition(loaded.config, loaded.task, Execution())

    def total(params: Any) -> Any:
        output = forward(graphdef, params, batch)
        return sum(jnp.sum(getattr(output, name) * factors) for name, factors in weights.items())

    # Machine code that is not polished computes the same gradients; it takes half as long to make.
    gradients = jax.jit(jax.grad(total), compiler_options={"xla_backend_optimization_level": 0})
    return gradients(jax.tree.map(jnp.asarray, loaded.params))


def gradient_share(
    case: Case, model: Any, loaded: LoadedCheckpoint, batch: dict[str, np.ndarray], folder: pathlib.Path
) -> float:
    """Returns the largest difference of a gradient from torch's as a share of the largest gradient."""
    alone = case.family in READS_PADDING
    weights = random_weights(torch_outputs(model, batch, torch.float64, alone), batch)
    theirs = torch_gradients(model, batch, weights, folder, alone)
    ours = flatten_names(our_gradients(loaded, batch, weights))
    family = get_family(case.family)
    largest = max(float(np.abs(gradient).max()) for gradient in theirs.values())
    worst = 0.0
    for leaf, entry in family.tensor_table(loaded.config).items():
        if leaf not in ours:
            continue
        name = entry.name_for(case.task)
        reference = theirs.get(f"{family.prefix}.{name}", theirs.get(name))
        mine = np.asarray(ours[leaf], np.float64)
        mine = mine.T if entry.transform == "transpose" else mine
        difference = np.abs(mine - (0.0 if reference is None else reference))
        if case.padding == "left" and leaf in ("embeddings.word.embedding", "embeddings.position.embedding"):
            difference[case.settings.get("pad_token_id", 0)] = 0.0  # torch keeps this row's gradient at 0
        worst = max(worst, float(difference.max()) / largest)
    return worst
