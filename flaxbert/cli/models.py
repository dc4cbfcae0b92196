"""``flaxbert models``: a registry of models with versions, aliases, promotion and rollback."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flaxbert.core.units import format_bytes

if TYPE_CHECKING:
    from flaxbert.registry import ModelState, PromotionRule, Registry, VersionRecord


def _open(registry: str) -> "Registry":
    from flaxbert.registry import Registry

    return Registry(registry)


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _scores(metrics: Mapping[str, float], most: int = 3) -> str:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in [*metrics.items()][:most])
    return shown + (f" and {len(metrics) - most} more" if len(metrics) > most else "")


def add(
    name: str,
    folder: str,
    registry: str = "",
    metrics: dict[str, float] | None = None,
    data: dict[str, Any] | None = None,
    parent: str = "",
    note: str = "",
    alias: list[str] | None = None,
) -> int:
    """Adds a model folder as the next version of a model.

    Args:
      name: The model; it is new where there is none of the name.
      folder: The model folder, for example model/ of a run.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.
      metrics: Scores by name, as {accuracy: 0.9}; left out, those of the model's card.
      data: What is known of the data that it was trained on, by name.
      parent: What it was made of: another version (NAME:3), or a hub id; empty takes what its card says.
      note: A sentence for people.
      alias: Aliases that move to it at once, as by promote.

    Returns:
      The exit code.
    """
    record = _open(registry).add(
        name, folder, metrics=metrics, data=data, parent=parent, note=note, aliases=tuple(alias or ())
    )
    moved = f", {', '.join(alias)}" if alias else ""
    print(f"Added {name}:{record.number}{moved}: {len(record.files)} files, {format_bytes(record.size_bytes)}.")
    return 0


def list(name: str = "", registry: str = "", json_output: bool = False) -> int:  # noqa: A001 - the command's name
    """Lists models, or the versions of one.

    Args:
      name: A model; empty for all models.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.
      json_output: Whether to print JSON instead of a table.

    Returns:
      The exit code.
    """
    opened = _open(registry)
    names = [name] if name else opened.models()
    states = [opened.state(each) for each in names]
    if json_output:
        print(json.dumps([_state_json(state) for state in states], indent=1))
        return 0
    if not states:
        print(f"No models in {opened.location}.")
        return 0
    if name:
        _list_versions(states[0])
        return 0
    rows = [("model", "versions", "aliases", "changed")]
    for state in states:
        aliases = ", ".join(f"{alias} {number}" for alias, number in state.aliases.items())
        rows.append(
            (state.name, str(len(state.versions)), aliases or "-", state.events[-1].time[:19].replace("T", " "))
        )
    _table(rows)
    return 0


def _list_versions(state: "ModelState") -> None:
    rows = [("version", "added", "by", "size", "task", "metrics", "aliases")]
    for number, record in sorted(state.versions.items()):
        aliases = ", ".join(alias for alias, place in state.aliases.items() if place == number)
        added = record.time[:19].replace("T", " ")
        scores, size = _scores(record.metrics) or "-", format_bytes(record.size_bytes)
        rows.append((str(number), added, record.by, size, record.task or "-", scores, aliases or "-"))
    if len(rows) == 1:
        print(f"{state.name} has no versions.")
        return
    _table(rows)


def _state_json(state: "ModelState") -> dict[str, Any]:
    return {
        "name": state.name,
        "aliases": state.aliases,
        "rules": {alias: rule.to_json() for alias, rule in state.rules.items()},
        "versions": [_record_json(record) for record in state.versions.values()],
    }


def _record_json(record: "VersionRecord") -> dict[str, Any]:
    import dataclasses

    return {**dataclasses.asdict(record), "size_bytes": record.size_bytes}


def show(reference: str, registry: str = "", history: bool = False, json_output: bool = False) -> int:
    """Shows a version: scores, data, origin, files; and what happened to the model.

    Args:
      reference: NAME:VERSION, NAME@ALIAS, or NAME for its champion.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.
      history: Whether to show the journal of the model too.
      json_output: Whether to print JSON instead of text.

    Returns:
      The exit code.
    """
    from flaxbert.registry import parse_reference

    opened = _open(registry)
    record, name = opened.find(reference), parse_reference(reference).name
    state = opened.state(name)
    if json_output:
        events = [vars(event) for event in state.events] if history else []
        print(json.dumps({**_record_json(record), "model": name, **({"history": events} if history else {})}, indent=1))
        return 0
    aliases = [alias for alias, number in state.aliases.items() if number == record.number]
    lines = {
        "version": f"{name}:{record.number}" + (f" ({', '.join(aliases)})" if aliases else ""),
        "added": f"{record.time} by {record.by}",
        "model": f"{record.family}, {record.task or 'task not known'}",
        "made of": record.parent or "-",
        "note": record.note or "-",
        "metrics": _scores(record.metrics, len(record.metrics)) or "-",
        "data": json.dumps(record.data) if record.data else "-",
        "digest": record.digest,
        "folder": str(opened.folder(reference)),
    }
    for title, value in lines.items():
        print(f"{title:<9} {value}")
    _table(
        [
            ("file", "size", "sha256"),
            *((file, format_bytes(entry["size_bytes"]), entry["sha256"]) for file, entry in record.files.items()),
        ]
    )
    if history:
        print()
        _table(
            [
                ("event", "time", "by", "what"),
                *((str(event.number), event.time, event.by, _told(event)) for event in state.events),
            ]
        )
    return 0


def _told(event: Any) -> str:
    shown = {
        key: value
        for key, value in event.details.items()
        if key not in ("files", "folder", "digest") and value not in ("", {}, None)
    }
    return f"{event.action} " + ", ".join(f"{key} {value}" for key, value in shown.items())


def alias(reference: str, alias: str, registry: str = "", remove: bool = False) -> int:
    """Moves an alias to a version (as promote does, with the rule that the alias has), or removes it.

    Args:
      reference: NAME:VERSION or NAME@ALIAS; to remove, the model's name.
      alias: The alias.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.
      remove: Whether to take the alias away.

    Returns:
      The exit code.
    """
    from flaxbert.registry import parse_reference

    opened = _open(registry)
    if remove:
        name = parse_reference(reference).name
        opened.remove_alias(name, alias)
        print(f"Removed {name}@{alias}.")
        return 0
    return _promote(opened, reference, alias, None, "")


def promote(
    reference: str,
    to: str = "champion",
    registry: str = "",
    metric: str = "",
    at_least: float | None = None,
    max_loss: float | None = None,
    lower_is_better: bool = False,
    force: str = "",
) -> int:
    """Moves an alias to a version if its scores allow it.

    Args:
      reference: NAME:VERSION or NAME@ALIAS.
      to: The alias.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.
      metric: Metric that the alias asks for from now on; empty keeps its rule.
      at_least: What the metric reaches at least (at most, with lower_is_better).
      max_loss: By how much it may be worse than that of the version in use, for example 0.
      lower_is_better: Whether lower values of the metric are better.
      force: Why the rule is set aside this once; it goes into the journal.

    Returns:
      The exit code.

    Raises:
      ConfigError: There is no such version, the rule says no, or a rule has no metric.
    """
    from flaxbert.errors import ConfigError
    from flaxbert.registry import PromotionRule

    rule = None
    if metric:
        rule = PromotionRule(metric, at_least, max_loss, lower_is_better)
    elif at_least is not None or max_loss is not None or lower_is_better:
        raise ConfigError("--at_least, --max_loss and --lower_is_better are of a metric; name it with --metric.")
    return _promote(_open(registry), reference, to, rule, force)


def _promote(opened: "Registry", reference: str, alias: str, rule: "PromotionRule | None", force: str) -> int:
    from flaxbert.registry import parse_reference

    wanted = parse_reference(reference)
    number = opened.find(wanted).number
    before = opened.state(wanted.name).aliases.get(alias, 0)
    opened.promote(wanted, alias, rule=rule, force=force)
    was = "" if not before else " already" if before == number else f" (was {before})"
    print(f"{wanted.name}@{alias} is version {number}{was}.")
    return 0


def rollback(name: str, alias: str = "champion", registry: str = "") -> int:
    """Moves an alias to the version where it stood before; again, further back.

    Args:
      name: The model.
      alias: The alias.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.

    Returns:
      The exit code.
    """
    state = _open(registry).roll_back(name, alias)
    print(f"{name}@{alias} is version {state.aliases[alias]} (was {state.events[-1].details['before']}).")
    return 0


def diff(first: str, second: str, registry: str = "", json_output: bool = False) -> int:
    """Shows how two versions differ: scores, architecture, origin, files.

    Args:
      first: NAME:VERSION or NAME@ALIAS.
      second: NAME:VERSION or NAME@ALIAS.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.
      json_output: Whether to print JSON instead of text.

    Returns:
      The exit code.
    """
    from flaxbert.registry.difference import compare_versions

    found = compare_versions(_open(registry), first, second)
    if json_output:
        print(json.dumps(found.to_json(), indent=1))
        return 0
    sizes = [format_bytes(record.size_bytes) for record in (found.before, found.after)]
    rows = [("", first, second, ""), ("size", *sizes, "")]
    for metric, (before, after) in found.metrics.items():
        cells = ["-" if value is None else f"{value:.6g}" for value in (before, after)]
        change = "" if before is None or after is None else f"{after - before:+.6g}"
        rows.append((metric, *cells, change))
    rows += [(f"config {key}", str(before), str(after), "") for key, (before, after) in found.config.items()]
    rows += [(key, str(before), str(after), "") for key, (before, after) in found.fields.items()]
    rows += [(f"file {file}", "", "", what) for file, what in found.files.items()]
    _table(rows)
    return 0


def delete(reference: str, registry: str = "") -> int:
    """Deletes a version that no alias stands at; its number is never given again.

    Args:
      reference: NAME:VERSION.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.

    Returns:
      The exit code.
    """
    _open(registry).delete(reference)
    print(f"Deleted {reference}.")
    return 0


def sign(reference: str, private_key: str, registry: str = "", password_variable: str = "") -> int:
    """Signs a version with a private key, in the format of OpenSSF model signing.

    Args:
      reference: NAME:VERSION or NAME@ALIAS.
      private_key: File of the key of an elliptic curve, in PEM.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.
      password_variable: Environment variable with the password of the key; empty for none.

    Returns:
      The exit code.
    """
    import os

    from flaxbert.registry.signatures import sign_version

    password = os.environ.get(password_variable, "") if password_variable else ""
    sign_version(_open(registry), reference, private_key, password)
    print(f"Signed {reference}.")
    return 0


def verify(name: str, version: int = 0, registry: str = "", public_key: str = "") -> int:
    """Compares the journal with itself, and every byte of versions with what was added, and with their signatures.

    Args:
      name: The model.
      version: One version; 0 for all.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.
      public_key: File of a public key, in PEM, that every version must be signed by; empty checks no signatures.

    Returns:
      Exit code: 1 where something is damaged or not signed, else 0.
    """
    from flaxbert.errors import DataError
    from flaxbert.registry.signatures import check_version

    opened = _open(registry)
    damage = opened.verify(name, version)
    for number, problems in damage.items():
        try:
            if public_key and not problems:
                check_version(opened, f"{name}:{number}", public_key)
        except DataError as error:
            problems.append(str(error))
    for number, problems in damage.items():
        print(
            f"{name}:{number} "
            + ("is as it was added." if not problems else "can not be trusted: " + "; ".join(problems))
        )
    orphans = opened.orphans(name)
    if orphans:
        print(f"{len(orphans)} folders belong to no version: additions that were broken off, or are still going on.")
    return int(any(damage.values()))
