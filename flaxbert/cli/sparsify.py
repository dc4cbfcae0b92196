"""``flaxbert sparsify``: sets a share of a model's weights to zero, for good."""

from typing import TYPE_CHECKING, Literal

from flaxbert.cli.compression import check_output, plan_comparison, save_compressed
from flaxbert.config import DataConfig

if TYPE_CHECKING:
    from flaxbert.transforms import CompressionReport
    from flaxbert.transforms.sparsify import SparsitySpec


def run(
    model: str,
    output: str,
    pattern: str | None = None,
    rate: float | None = None,
    scope: Literal["leaf", "global"] = "leaf",
    keep: list[str] | None = None,
    task: str | None = None,
    report: str = "",
    examples: str = "",
    data: DataConfig = DataConfig(max_length=0),
) -> int:
    """Sets the weights of smallest magnitude in the encoder's matrices to zero.

    Args:
      model: Folder or hub id of the model.
      output: New folder that the sparse model is written to, with compression_report.json beside it.
      pattern: N:M, the weights kept of each group of neighbours along the inputs; default 2:4 where no rate is given.
      rate: Share of weights that become zero, in [0, 1), chosen one by one instead of by pattern.
      scope: With a rate: rank weights within each leaf, or over all leaves together (global).
      keep: Regular expressions of leaf names that stay dense, for example "encoder.layers.0.*".
      task: Task to load the model for; default what the folder holds.
      report: New folder for a page that compares the two models, as flaxbert compare writes it; empty writes none.
      examples: Labelled examples for the quality in that report; --data FILE is the same.
      data: Where labels and texts stand in these examples.

    Returns:
      The exit code.
    """
    compare = plan_comparison(model, output, report, examples, data)
    done = sparsify_model(model, output, pattern=pattern, rate=rate, scope=scope, keep=keep, task=task)
    print(done.to_text(), end="")
    print(f"Saved to {output}.")
    return compare()


def parse_sparsity(pattern: str | None, rate: float | None, scope: str) -> "SparsitySpec":
    """Returns the specification that the options ask for.

    Args:
      pattern: ``N:M`` or None.
      rate: Share of pruned weights or None.
      scope: ``leaf`` or ``global``.

    Raises:
      ConfigError: Both or malformed options.
    """
    import re

    from flaxbert.errors import ConfigError
    from flaxbert.transforms import GroupSparsity, MagnitudeSparsity

    if rate is not None:
        if pattern is not None:
            raise ConfigError(f"--pattern {pattern} and --rate {rate} exclude each other; give one of them.")
        return MagnitudeSparsity(rate=rate, scope="global" if scope == "global" else "leaf")
    if scope != "leaf":
        raise ConfigError(f"--scope {scope} needs --rate; a pattern is chosen group by group.")
    match = re.fullmatch(r"(\d+):(\d+)", pattern or "2:4")
    if match is None:
        raise ConfigError(f"--pattern is '{pattern}', but must be N:M such as 2:4.")
    return GroupSparsity(num_kept=int(match[1]), group_size=int(match[2]))


def sparsify_model(
    model: str,
    output: str,
    pattern: str | None = None,
    rate: float | None = None,
    scope: Literal["leaf", "global"] = "leaf",
    keep: list[str] | None = None,
    task: str | None = None,
) -> "CompressionReport":
    """Sparsifies a model on disk and returns the report that is also written into the new folder.

    Args:
      model: Folder or hub id.
      output: Folder to write; must not exist or be empty.
      pattern: ``N:M``; None with no rate: 2:4.
      rate: Share of pruned weights, in [0, 1); excludes a pattern.
      scope: With a rate: ``leaf`` or ``global``.
      keep: Regular expressions of leaf names that stay dense; each must match one at least.
      task: Task to load the model for; None takes what the folder holds.

    Returns:
      The report.

    Raises:
      ConfigError: The output folder exists already, or the options are malformed.
      RuleError: An entry of ``keep`` matches no leaf, or the model is quantized already.
      ShapeError: The inputs of a matrix are not divisible by M.
    """
    folder = check_output(output)
    spec = parse_sparsity(pattern, rate, scope)
    from flaxbert.core.runtime import configure

    configure()
    import flaxbert
    from flaxbert.core.rules import Rule
    from flaxbert.transforms import default_sparsity_rules, sparsify
    from flaxbert.transforms.sparsify import SparsityRule

    loaded = flaxbert.load(model, task=task)
    kept: tuple[SparsityRule, ...] = tuple(Rule(name, None) for name in keep or ())
    rules = (*kept, *default_sparsity_rules(spec))
    params, report = sparsify(loaded.params, rules)
    save_compressed(loaded.replace(params=params), report, folder, source=model)
    return report
