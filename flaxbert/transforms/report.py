"""What a transform did to every leaf: form, bytes and error, as data, JSON or a table."""

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.core.arrays import array_bytes, is_typed, materialize
from flaxbert.core.trees import flatten_names

KEPT = "kept"
"""Form of a leaf that a transform left as it was."""

REMOVED = "removed"
"""Form of a leaf that is gone."""


def leaf_bytes(leaf: Any) -> int:
    """Returns the bytes that a leaf occupies, all parts of typed leaves together."""
    return leaf.size_bytes if is_typed(leaf) else array_bytes(leaf)


@dataclasses.dataclass(frozen=True)
class LeafReport:
    """What happened to one leaf.

    Attributes:
      name: Dotted leaf name.
      form: What the leaf became: ``kept``, ``quantized``, ``sparse``, ``dense``, ``smaller``, ``removed``…
      num_parameters: Logical entries.
      bytes_before: Bytes of all stored parts before.
      bytes_after: Bytes of all stored parts after.
      kept_share: Share of entries that are neither removed nor zero by a mask, in [0, 1].
      max_relative_error: Largest error of an entry over the largest magnitude of the leaf.
      rms_relative_error: Root-mean-square error over the root-mean-square of the leaf.
    """

    name: str
    form: str
    num_parameters: int
    bytes_before: int
    bytes_after: int
    kept_share: float = 1.0
    max_relative_error: float = 0.0
    rms_relative_error: float = 0.0


def kept_leaf(name: str, leaf: Any) -> LeafReport:
    """Returns the report of a leaf that stays as it is.

    Args:
      name: Name of the leaf.
      leaf: The leaf.
    """
    size = leaf_bytes(leaf)
    return LeafReport(name, KEPT, math.prod(leaf.shape), size, size)


@dataclasses.dataclass
class LeafErrors:
    """How far new weights are from old ones, gathered piece by piece.

    Attributes:
      count: Weights so far.
      largest: Largest magnitude of the old weights.
      largest_error: Largest error.
      squares: Sum of the squares of the old weights.
      squared_errors: Sum of the squares of the errors.
    """

    count: int = 0
    largest: float = 0.0
    largest_error: float = 0.0
    squares: float = 0.0
    squared_errors: float = 0.0

    def add(self, weights: np.ndarray, stored: np.ndarray) -> None:
        """Takes in a piece.

        Args:
          weights: Dense weights before.
          stored: Dense weights after.
        """
        error = np.subtract(stored, weights, dtype=np.float64)
        exact = weights.astype(np.float64)
        self.count += weights.size
        self.largest = max(self.largest, float(np.max(np.abs(weights), initial=0.0)))
        self.largest_error = max(self.largest_error, float(np.max(np.abs(error), initial=0.0)))
        self.squares += float(np.vdot(exact, exact))
        self.squared_errors += float(np.vdot(error, error))


def compare_errors(
    name: str, form: str, before: Any, after: Any, errors: LeafErrors, kept_share: float = 1.0
) -> LeafReport:
    """Returns the report of a changed leaf whose errors are known.

    Args:
      name: Leaf name.
      form: What the leaf became.
      before: The old leaf, for its bytes.
      after: The new leaf, for its bytes.
      errors: How far its weights are from the old ones.
      kept_share: Share of entries that a mask keeps.
    """
    return LeafReport(
        name=name,
        form=form,
        num_parameters=errors.count,
        bytes_before=leaf_bytes(before),
        bytes_after=leaf_bytes(after),
        kept_share=kept_share,
        max_relative_error=errors.largest_error / errors.largest if errors.largest else 0.0,
        rms_relative_error=math.sqrt(errors.squared_errors / errors.squares) if errors.squares else 0.0,
    )


def compare_leaf(
    name: str, form: str, before: Any, after: Any, weights: np.ndarray, stored: np.ndarray, kept_share: float = 1.0
) -> LeafReport:
    """Returns the report of a changed leaf.

    Args:
      name: Leaf name.
      form: What the leaf became.
      before: The old leaf, for its bytes.
      after: The new leaf, for its bytes.
      weights: Dense weights before.
      stored: Dense weights that the new leaf stands for.
      kept_share: Share of entries that a mask keeps.
    """
    errors = LeafErrors()
    errors.add(weights, stored)
    return compare_errors(name, form, before, after, errors, kept_share)


def _change(name: str, before: Any, after: Any) -> LeafReport:
    if after is before:
        return kept_leaf(name, before)
    if after is None:
        return LeafReport(name, REMOVED, math.prod(before.shape), leaf_bytes(before), 0, 0.0)
    mask = getattr(after, "mask", None)
    share = 1.0 if mask is None else float(np.mean(np.asarray(mask)))
    form = after.kind if is_typed(after) else "dense"
    if tuple(after.shape) == tuple(before.shape):
        weights, stored = (np.asarray(materialize(leaf)) for leaf in (before, after))
        return compare_leaf(name, form, before, after, weights, stored, share)
    entries, form = math.prod(before.shape), f"smaller, {form}"
    return LeafReport(
        name, form, entries, leaf_bytes(before), leaf_bytes(after), share * math.prod(after.shape) / entries
    )


def compare_trees(
    transform: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    sources: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> "CompressionReport":
    """Returns the report of a transform that removes weights: what is left of every leaf.

    Args:
      transform: Name of the transform.
      before: Tree of named leaves.
      after: The tree that came of it.
      sources: Name before, by name after, where they differ.
      notes: As for ``CompressionReport``.
    """
    leaves = {(sources or {}).get(name, name): leaf for name, leaf in flatten_names(after).items()}
    reports = tuple(_change(name, leaf, leaves.get(name)) for name, leaf in flatten_names(before).items())
    return CompressionReport(transform, reports, tuple(notes))


@dataclasses.dataclass(frozen=True)
class CompressionReport:
    """What a transform did to a tree.

    Attributes:
      transform: Name of the transform.
      leaves: One report per leaf, in tree order.
      notes: Further facts that a reader should know, one sentence each.
    """

    transform: str
    leaves: tuple[LeafReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def bytes_before(self) -> int:
        """Bytes of the whole tree before."""
        return sum(leaf.bytes_before for leaf in self.leaves)

    @property
    def bytes_after(self) -> int:
        """Bytes of the whole tree after."""
        return sum(leaf.bytes_after for leaf in self.leaves)

    @property
    def changed(self) -> tuple[LeafReport, ...]:
        """Reports of the leaves that the transform changed."""
        return tuple(leaf for leaf in self.leaves if leaf.form != KEPT)

    @property
    def kept_share(self) -> float:
        """Share of the changed leaves' entries that masks keep, in [0, 1]; 1 where nothing changed."""
        total = sum(leaf.num_parameters for leaf in self.changed)
        return sum(leaf.kept_share * leaf.num_parameters for leaf in self.changed) / total if total else 1.0

    @property
    def max_relative_error(self) -> float:
        """Largest relative error of any leaf."""
        return max((leaf.max_relative_error for leaf in self.leaves), default=0.0)

    @property
    def rms_relative_error(self) -> float:
        """Largest root-mean-square relative error of any leaf."""
        return max((leaf.rms_relative_error for leaf in self.leaves), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Returns totals and leaves as plain numbers and strings."""
        return {
            "transform": self.transform,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "num_leaves_changed": len(self.changed),
            "kept_share": self.kept_share,
            "max_relative_error": self.max_relative_error,
            "rms_relative_error": self.rms_relative_error,
            "notes": list(self.notes),
            "leaves": [dataclasses.asdict(leaf) for leaf in self.leaves],
        }

    def to_json(self) -> str:
        """Returns ``to_dict`` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self, width: int = 120) -> str:
        """Returns a table of the changed leaves, with totals below.

        Args:
          width: Columns of text.
        """
        from rich.console import Console
        from rich.table import Table

        table = Table(title=self.transform, title_justify="left")
        table.add_column("leaf", overflow="fold")
        table.add_column("form")
        for header in ("MB before", "MB after", "kept", "max error", "rms error"):
            table.add_column(header, justify="right")
        removed = [leaf for leaf in self.changed if leaf.form == REMOVED]
        for leaf in self.changed:
            if leaf.form == REMOVED:
                continue
            table.add_row(
                leaf.name,
                leaf.form,
                f"{leaf.bytes_before / 1e6:.2f}",
                f"{leaf.bytes_after / 1e6:.2f}",
                f"{leaf.kept_share:.1%}",
                f"{leaf.max_relative_error:.2%}",
                f"{leaf.rms_relative_error:.2%}",
            )
        text = io.StringIO()
        console = Console(file=text, width=width, color_system=None)
        console.print(table)
        unchanged = len(self.leaves) - len(self.changed)
        lines = [
            f"{len(self.changed) - len(removed)} leaves changed, {unchanged} kept as they were.",
            *([f"{len(removed)} leaves are gone."] if removed else []),
            f"All parameters: {self.bytes_before / 1e6:.1f} MB before, {self.bytes_after / 1e6:.1f} MB after.",
            *self.notes,
        ]
        return text.getvalue() + "\n".join(lines) + "\n"
