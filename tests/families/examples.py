"""Odd architectures of every family."""

from flaxbert.architecture import ModelConfig
from flaxbert.families import Family
from flaxbert.nn.disentangled_attention import DisentangledOptions

SIZES = {
    "vocab_size": 31,
    "hidden_size": 15,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 7,
    "max_position_embeddings": 11,
    "type_vocab_size": 3,
    "num_labels": 4,
}

_SCORES = {"relative_attention": True, "score_types": ("c2p", "p2c")}
_SECOND = {"position_buckets": 4, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3, "conv_groups": 5}
OWN_SIZES = {
    **{name: {"hidden_size": 20} for name in ("convbert", "modernbert", "nomic_bert")},
    "deberta": {"options": DisentangledOptions(**_SCORES)},
    "deberta-v2": {"options": DisentangledOptions(**_SCORES, **_SECOND)},
}


def odd_config(family: Family, task: str, **changes) -> ModelConfig:
    """An architecture of odd sizes with what the family's own files say where they are silent."""
    written = ModelConfig(family=family.model_type, **{**SIZES, **OWN_SIZES.get(family.model_type, {}), **changes})
    json = {key: value for key, value in family.config_to_json(written, task).items() if key != "pad_token_id"}
    read = family.config_from_json(json)
    return read.replace(num_labels=1, labels=()) if task == "multiple-choice" else read.replace(num_labels=4, labels=())
