"""Models with versions: immutable folders, aliases that move at once, a journal of everything that happened, promotion by rule."""

from flaxbert.registry.names import Reference, parse_reference
from flaxbert.registry.registry import LOCATION_VARIABLE, Registry
from flaxbert.registry.rules import PromotionRule
from flaxbert.registry.state import ModelState, VersionRecord

__all__ = [
    "LOCATION_VARIABLE",
    "ModelState",
    "PromotionRule",
    "Reference",
    "Registry",
    "VersionRecord",
    "parse_reference",
]
