"""Pruning that makes up for itself: the weights that stay take over what the pruned ones gave, as far as the inputs allow it."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from flaxbert.transforms.rounding import GPTQ_BLOCK, inverse_factor

MaskMaker = Callable[[Float[np.ndarray, "rows columns"]], Bool[np.ndarray, "rows columns"]]
"""Chooses which entries of some rows stay, given what each would cost."""


def prune_rows(
    weights: Float[np.ndarray, "in_axis out_axis"],
    second_moment: Float[np.ndarray, "in_axis in_axis"],
    choose: MaskMaker,
    group_size: int = GPTQ_BLOCK,
    allowed: Bool[np.ndarray, "in_axis out_axis"] | None = None,
) -> tuple[Float[np.ndarray, "in_axis out_axis"], Bool[np.ndarray, "in_axis out_axis"]]:
    """Prunes row by row, and moves the rows that are still to come so that they make up for it (Frantar and Alistarh, 2023, algorithm 1).

    With ``U`` the upper Cholesky factor of the inverse of the inputs' second moment, pruning entry ``w`` of row ``i`` costs ``(w / U[i, i])**2``: those that cost
    least go. Their error is handed to the rows after them as in GPTQ. Entries are chosen group by group, when the first row of the group is reached.

    Args:
      weights: Finite float32 kernel.
      second_moment: Mean of ``x x^T`` over the inputs.
      choose: Chooses which entries of a group stay.
      group_size: Rows that are chosen among together.
      allowed: Where weights may be other than 0; None: everywhere.

    Returns:
      The kernel, 0 where it is pruned, and which entries stay.
    """
    moved, factor = weights.astype(np.float32).copy(), inverse_factor(second_moment)
    rows, columns = weights.shape
    mask, block = np.ones(weights.shape, bool), max(GPTQ_BLOCK // group_size, 1) * group_size
    diagonal = np.diagonal(factor)
    for start in range(0, rows, block):
        end = min(start + block, rows)
        errors = np.zeros((end - start, columns), np.float32)
        for row in range(start, end):
            if (row - start) % group_size == 0:
                ahead = slice(row, min(row + group_size, end))
                mask[ahead] = choose(np.square(moved[ahead] / diagonal[ahead, None]))
                if allowed is not None:
                    mask[ahead] &= allowed[ahead]
            kept = np.where(mask[row], moved[row], np.float32(0.0))
            error = (moved[row] - kept) / diagonal[row]
            moved[row + 1 : end] -= np.outer(factor[row, row + 1 : end], error)
            moved[row], errors[row - start] = kept, error
        moved[end:] -= factor[start:end, end:].T @ errors
    return moved, mask
