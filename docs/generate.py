"""Writes ``docs/configuration.md`` from the dataclasses of ``flaxbert.config``; ``make docs`` runs it.

``--check`` writes nothing and ends with 1 where the file on disk differs.
"""

import collections.abc
import dataclasses
import pathlib
import sys
import typing

import docstring_parser

from flaxbert.config import (
    AccessConfig,
    BatchingConfig,
    DistillConfig,
    DriftConfig,
    LimitsConfig,
    PretrainConfig,
    RolloutConfig,
    RunConfig,
    TlsConfig,
)

PATH = pathlib.Path(__file__).resolve().parent / "configuration.md"

INTRODUCTION = """# Configuration

Written by `make docs` from the dataclasses in `flaxbert/config/`; change those, not this file.

Each option below is a key of a YAML file for `flaxbert finetune --config FILE` and a flag on its command line, which wins:
`train: {learning_rate: 3.0e-5}` and `--train.learning_rate 3e-5` are the same. `flaxbert finetune --print-config` prints the
configuration that a command line stands for. An unknown key is an error.
"""


def describe_type(annotation: typing.Any) -> str:
    """Returns a type as it reads in a table, for example ``integer or auto``."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    names = {bool: "true or false", int: "integer", float: "number", str: "text"}
    if annotation in names:
        return names[annotation]
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" if part else "empty" for part in parts)
    if origin is tuple:
        return f"list of {describe_type(parts[0])}"
    if dataclasses.is_dataclass(annotation):
        types = typing.get_type_hints(annotation)
        return "{" + ", ".join(f"{name}: {describe_type(part)}" for name, part in types.items()) + "}"
    if origin is collections.abc.Mapping:
        return "mapping from " + " to ".join(describe_type(part) for part in parts)
    return " or ".join(describe_type(part) for part in parts) if parts else str(annotation)


def describe_default(value: typing.Any) -> str:
    """Returns a default as it is written in YAML."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[]`" if not value else f"`{list(value)}`"
    return "empty" if value == "" else f"`{value}`"


def one_line(text: str) -> str:
    """Returns a text that fits into a cell of a Markdown table."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def describe_section(name: str, section: typing.Any) -> str:
    """Returns the heading and the table of one section of the run.

    Args:
      name: The word before the dot, for example ``train``.
      section: The dataclass instance with the defaults.

    Returns:
      Markdown, one row per option.
    """
    documentation = docstring_parser.parse(type(section).__doc__ or "")
    texts = {parameter.arg_name: parameter.description or "" for parameter in documentation.params}
    types = typing.get_type_hints(type(section))
    rows = [
        f"| `{name}.{field.name}` | {describe_type(types[field.name])} "
        f"| {describe_default(getattr(section, field.name))} | {one_line(texts[field.name])} |"
        for field in dataclasses.fields(section)
    ]
    head = ["| Option | Type | Default | Meaning |", "|---|---|---|---|"]
    return "\n".join([f"\n## {name}\n", f"{documentation.short_description}\n", *head, *rows, ""])


DISTILLATION = """
# Distillation

`flaxbert distill` reads the sections above, with `model.path` for a student that exists and `train` for its last stage, and those
below. The section `intermediate` has the options of `train`, for the first of two stages.
"""

PRETRAINING = """
# Pre-training

`flaxbert pretrain` reads `train`, `mesh` and `output` as above, the sections below, and, with `teacher.path`, those of distillation, which then
stand for DistilBERT's terms and weights.
"""

SERVING = """
# Serving

`flaxbert serve` reads the sections below; [serving.md](serving.md) tells what they are for.
"""

SERVING_SECTIONS = {
    "limits": LimitsConfig,
    "batching": BatchingConfig,
    "access": AccessConfig,
    "tls": TlsConfig,
    "rollout": RolloutConfig,
    "drift": DriftConfig,
}
DISTILLATION_SECTIONS = ("teacher", "student", "distillation", "augmentation")
PRETRAINING_SECTIONS = ("model", "data", "masking", "objective")


def render() -> str:
    """Returns the whole page."""
    run, distilled = RunConfig(), DistillConfig()
    sections = [describe_section(field.name, getattr(run, field.name)) for field in dataclasses.fields(run)]
    own = [describe_section(name, getattr(distilled, name)) for name in DISTILLATION_SECTIONS]
    words = [describe_section(name, getattr(PretrainConfig(), name)) for name in PRETRAINING_SECTIONS]
    served = [describe_section(name, build()) for name, build in SERVING_SECTIONS.items()]
    parts = [*sections, DISTILLATION, *own, PRETRAINING, *words, SERVING, *served]
    return INTRODUCTION + "".join(parts)


def main(arguments: list[str]) -> int:
    """Writes the page, or checks it.

    Args:
      arguments: Empty, or ``["--check"]``.

    Returns:
      The exit code.
    """
    text = render()
    current = PATH.read_text(encoding="utf-8") if PATH.is_file() else ""
    if arguments == ["--check"]:
        if current != text:
            sys.stderr.write("docs/configuration.md is not up to date; run `make docs` and commit it.\n")
        return int(current != text)
    if arguments:
        sys.stderr.write(f"docs/generate.py takes no argument but --check, got {' '.join(arguments)}\n")
        return 2
    PATH.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
