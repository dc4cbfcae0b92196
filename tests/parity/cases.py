"""The grid of the parity suite: odd configurations of every family, every head on two of them at least."""

import dataclasses
from typing import Any

from flaxbert.families import FAMILIES
from tests.parity.oracle import Case

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "five heads of 3, relu": {"config": {"hidden_size": 15, "num_attention_heads": 5, "hidden_act": "relu"}},
    "seven heads of 11": {"config": {"hidden_size": 77, "num_attention_heads": 7, "intermediate_size": 101}},
    "one layer, three token types": {"config": {"num_hidden_layers": 1, "type_vocab_size": 3}},
    "padding on the left, tanh GELU": {"config": {"hidden_act": "gelu_new"}, "padding": "left"},
    "full length, large epsilon": {"config": {"layer_norm_eps": 0.1}, "length": 20, "padding": "none"},
    "six heads of 2, silu, one label": {
        "config": {"hidden_size": 12, "num_attention_heads": 6, "hidden_act": "silu", "num_labels": 1}
    },
    "four layers, one head": {"config": {"hidden_size": 10, "num_attention_heads": 1, "num_hidden_layers": 4}},
}
"""Shapes that every family takes."""

_WIDE = {"hidden_size": 20, "num_attention_heads": 5, "hidden_act": "relu"}
_EVEN_HEADS: dict[str, dict[str, Any]] = {
    "five heads of 3, relu": {"config": _WIDE},
    "seven heads of 11": {"config": {"hidden_size": 84, "num_attention_heads": 7, "intermediate_size": 101}},
}
OWN_SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "albert": {
        "two groups, two inner blocks": {
            "config": {"num_hidden_groups": 2, "inner_group_num": 2, "num_hidden_layers": 5},
        },
        "embeddings as wide as blocks": {"config": {"embedding_size": 24}},
    },
    "electra": {"embeddings as wide as blocks": {"config": {"embedding_size": 24}}},
    "ernie": {"no task types": {"config": {"use_task_id": False}}},
    "distilbert": {"sinusoids": {"config": {"sinusoidal_pos_embds": True}}},
    "convbert": {
        "five heads of 3, relu": {"config": _WIDE},
        "seven heads of 11": {"config": {"hidden_size": 84, "num_attention_heads": 7, "intermediate_size": 100}},
        "two groups, five taps": {"config": {"num_groups": 2, "conv_kernel_size": 5}},
        "head ratio 4": {"config": {"head_ratio": 4, "num_attention_heads": 12}},
    },
    "modernbert": _EVEN_HEADS,
    "nomic_bert": _EVEN_HEADS,
    "deberta": {
        "few distances, c2p only": {"config": {"max_relative_positions": 4, "pos_att_type": ["c2p"]}},
        "positions as input, narrow embeddings": {"config": {"position_biased_input": True, "embedding_size": 10}},
        "no distances": {"config": {"relative_attention": False}},
    },
    "deberta-v2": {
        "convolution, layers of its own": {
            "config": {"conv_kernel_size": 3, "conv_act": "gelu", "share_att_key": False}
        },
        "no buckets, p2c only": {"config": {"position_buckets": -1, "pos_att_type": "p2c"}},
        "positions as input, narrow embeddings": {"config": {"position_biased_input": True, "embedding_size": 10}},
    },
    "mpnet": {
        "distances in shared buckets": {"config": {"max_position_embeddings": 60}, "length": 58, "padding": "none"}
    },
}
"""Shapes that one family alone has, or takes in another form."""


def cases_of(family: str) -> list[Case]:
    """Returns the grid of a family: every shape, and every task on two shapes at least."""
    shapes = {**SHAPES, **OWN_SHAPES.get(family, {})}
    names = list(shapes)
    tasks = [task for task in FAMILIES[family].architectures if task != "sentence-similarity"]
    count = max(2 * len(tasks), len(names))
    pairs = dict.fromkeys((names[index % len(names)], tasks[index % len(tasks)]) for index in range(count))
    for task in tasks:
        used = [name for name, other in pairs if other == task]
        spare = [name for name in names if name not in used]
        pairs |= dict.fromkeys((name, task) for name in spare[: max(0, 2 - len(used))])
    return [Case(name, task, family=family, **shapes[name]) for name, task in pairs]


def named(case: Case) -> str:
    """Returns the name of a case for reports."""
    return f"{case.family}, {case.task}, {case.name}"


def smoke_cases(family: str) -> list[Case]:
    """Returns the part of the grid that the default tests run: every task of BERT once, the first of other families."""
    seen: dict[str, Case] = {}
    for case in cases_of(family):
        seen.setdefault(case.task, case)
    chosen = list(seen.values()) if family == "bert" else list(seen.values())[:1]
    return [dataclasses.replace(case, batch=2) for case in chosen]
