"""Writes ``docs/parity.md`` from what the parity suite recorded; ``make parity`` runs both."""

import json
import pathlib
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

PATH = pathlib.Path(__file__).resolve().parent / "parity.md"

INTRODUCTION = """# Parity with transformers

Written by `make parity`; change `tests/parity`, not this file. Every family and head is compared with the stock classes of
transformers {transformers} on torch {torch} ({own_heads} with an oracle built on the stock encoder), on small models of odd
shapes whose every weight is random and far from gentle initial values.

- **float32**: the largest absolute difference of outputs; **share** is the largest share of what is allowed, which is
  `1e-5 * max(1, largest output)`, or three times torch's own distance from float64 where that is more. Up to 1 passes.
- **gradients**: the largest difference from torch's float64 gradient, as a share of the model's largest gradient; up to 1e-4 passes.
- **bfloat16**: the largest absolute distance from torch in float64, ours and torch's own (`model.to(bfloat16)`). What must hold is
  that the root mean square of ours is at most 1.15 times torch's.
- **round trip**: flaxbert saves what it loaded; stock transformers loads it with no tensor missing or left over and gives the
  same outputs, bit for bit where it says exact.

| Family | Head | Shapes | float32 | share | gradients | bfloat16 | torch bfloat16 | round trip |
|---|---|---|---|---|---|---|---|---|
"""


def read_results(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines that the suite recorded.

    Args:
      folder: Folder with a JSONL file of each process.
    """
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def render(results: Iterable[Mapping[str, Any]]) -> str:
    """Returns the page.

    Args:
      results: One entry for each case.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in results:
        groups.setdefault((entry["family"], entry["task"]), []).append(entry)
    rows = []
    for (family, task), entries in sorted(groups.items()):
        worst = {
            key: max(entry[key] for entry in entries)
            for key in ("float32", "excess", "gradients", "bfloat16", "torch_bfloat16")
        }
        trip = "exact" if all(entry["round_trip"] for entry in entries) else "within float32"
        rows.append(
            f"| {family} | {task} | {len(entries)} | {worst['float32']:.1e} | {worst['excess']:.2f} "
            f"| {worst['gradients']:.1e} | {worst['bfloat16']:.1e} | {worst['torch_bfloat16']:.1e} | {trip} |"
        )
    versions = {package: metadata.version(package) for package in ("transformers", "torch")}
    head = INTRODUCTION.format(**versions, own_heads="relation classification and late interaction")
    return head + "\n".join(rows) + "\n"


def main(arguments: list[str]) -> int:
    """Writes the page.

    Args:
      arguments: The folder of the results.

    Returns:
      The exit code.
    """
    results = read_results(pathlib.Path(arguments[0])) if len(arguments) == 1 else []
    if not results:
        sys.stderr.write("docs/parity.py takes the folder that FLAXBERT_PARITY_RESULTS named; it holds no results.\n")
        return 2
    PATH.write_text(render(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
