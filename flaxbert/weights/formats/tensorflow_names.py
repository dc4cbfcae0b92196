"""From the names of variables in Google's checkpoints to the names that torch gives the same tensors."""

import re
from collections.abc import Collection

SLOTS = r".*/(adam_m|adam_v|Adam|Adam_1|lamb_m|lamb_v|LAMB|LAMB_1|Momentum|ExponentialMovingAverage)"
"""What optimizers keep beside a variable."""

COUNTERS = r"(global_step|beta1_power|beta2_power|(.*/)?(loss_scale|good_steps|bad_steps))"
"""Numbers of a training run."""

OPTIMIZER_STATE = f"{SLOTS}|{COUNTERS}"
"""Variables that carry no weights; their names are kept as they are."""

SECOND_NETWORK = r"generator(_predictions|_lm_head)?/.*"
"""ELECTRA's checkpoints hold two networks. The discriminator's names are translated, and these of the generator are kept."""

_LAST_WORDS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "output_weights": "weight",
    "output_bias": "bias",
}

_TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")

_ALBERT: tuple[tuple[str, str], ...] = (
    (r"^bert/", "albert/"),
    (r"/transformer/", "/"),
    (r"/group_(\d+)/inner_group_(\d+)/", r"/albert_layer_groups/\1/albert_layers/\2/"),
    (r"/attention_1/(self|output)/(query|key|value|dense)/", r"/attention/\2/"),
    (r"(/albert_layers/\d+)/LayerNorm_1/", r"\1/full_layer_layer_norm/"),
    (r"(/albert_layers/\d+)/LayerNorm/", r"\1/attention/LayerNorm/"),
    (r"/ffn_1/intermediate/output/dense/", "/ffn_output/"),
    (r"/ffn_1/intermediate/dense/", "/ffn/"),
    (r"/pooler/dense/", "/pooler/"),
    (r"^cls/predictions/transform/", "predictions/"),
    (r"^cls/predictions/", "predictions/"),
    (r"^cls/seq_relationship/", "sop_classifier/classifier/"),
)

_ELECTRA: tuple[tuple[str, str], ...] = (
    (r"^discriminator_predictions/dense_1/", "discriminator_predictions/dense_prediction/"),
    (r"^generator_predictions/output_bias$", "generator_lm_head/bias"),
)

_BERT: tuple[tuple[str, str], ...] = (
    (r"/layer_(\d+)/", r"/layer/\1/"),
    (r"^cls/squad/", "qa_outputs/"),
    (r"^(output_weights|output_bias)$", r"classifier/\1"),
)


def is_kernel(variable: str) -> bool:
    """Returns whether a variable has the axes ``[in, out]``, which torch has the other way round.

    Args:
      variable: Name in the checkpoint. The matrices called ``output_weights`` are ``[out, in]`` already.
    """
    return variable.rsplit("/", 1)[-1] == "kernel"


def torch_names(variables: Collection[str]) -> dict[str, str]:
    """Returns torch's name for each variable; variables without weights, and those of a second network, keep theirs.

    Args:
      variables: All names in the checkpoint, which also say of which family it is.
    """
    rules, kept = _BERT, OPTIMIZER_STATE
    if any("/inner_group_" in name for name in variables):
        rules = (*_ALBERT, *_BERT)
    elif any(name.startswith("electra/") for name in variables):
        rules = (*_ELECTRA, *_BERT)
        if any(name.startswith("generator/") for name in variables):
            kept = f"{OPTIMIZER_STATE}|{SECOND_NETWORK}"
    return {name: name if re.fullmatch(kept, name) else _translate(name, rules) for name in variables}


def _translate(variable: str, rules: tuple[tuple[str, str], ...]) -> str:
    name = variable.removeprefix("module/")
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    *parts, last = name.split("/")
    if last in _TABLES:
        return ".".join([*parts, last, "weight"])
    return ".".join([*parts, _LAST_WORDS.get(last, last)])
