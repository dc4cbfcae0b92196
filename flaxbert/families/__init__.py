"""The families of encoders by ``model_type``."""

from flaxbert.errors import ConfigError, nearest
from flaxbert.families.albert import ALBERT
from flaxbert.families.base import Family, TensorName, TiedTensor
from flaxbert.families.bert import BERT
from flaxbert.families.convbert import CONVBERT
from flaxbert.families.deberta import DEBERTA
from flaxbert.families.deberta_v2 import DEBERTA_V2
from flaxbert.families.distilbert import DISTILBERT
from flaxbert.families.electra import ELECTRA
from flaxbert.families.ernie import ERNIE
from flaxbert.families.modernbert import MODERNBERT
from flaxbert.families.mpnet import MPNET
from flaxbert.families.nomic_bert import NOMIC_BERT
from flaxbert.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        BERT,
        ROBERTA,
        XLM_ROBERTA,
        CAMEMBERT,
        DISTILBERT,
        ALBERT,
        ELECTRA,
        ERNIE,
        CONVBERT,
        MPNET,
        MODERNBERT,
        NOMIC_BERT,
        DEBERTA,
        DEBERTA_V2,
    )
}
"""All families by the ``model_type`` of their checkpoints."""


def get_family(model_type: str) -> Family:
    """Returns a family by name.

    Args:
      model_type: The ``model_type`` of a ``config.json``.

    Raises:
      ConfigError: The family is unknown; lists the nearest.
    """
    if model_type not in FAMILIES:
        raise ConfigError(
            f"Unknown family '{model_type}' (model_type of config.json); known are {', '.join(FAMILIES)}."
            + nearest(model_type, FAMILIES)
        )
    return FAMILIES[model_type]


__all__ = ["FAMILIES", "Family", "TensorName", "TiedTensor", "get_family"]
