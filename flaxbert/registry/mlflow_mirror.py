"""A copy of a model's versions, scores and aliases in MLflow's model registry."""

import dataclasses
import importlib.util
from typing import Any

from flaxbert.errors import ConfigError, DependencyError
from flaxbert.registry.names import Reference
from flaxbert.registry.registry import Registry
from flaxbert.registry.state import VersionRecord
from flaxbert.registry.tensorboard import describe

DIGEST_TAG, NUMBER_TAG = "flaxbert.digest", "flaxbert.version"
"""Tags of MLflow's versions that say which version of the registry they are."""


@dataclasses.dataclass(frozen=True)
class Mirrored:
    """What a mirroring did.

    Attributes:
      added: MLflow's number of each version that is new there, by its number here.
      aliases: MLflow's number by alias, as it is now.
      removed: Aliases that were taken away.
    """

    added: dict[int, int]
    aliases: dict[str, int]
    removed: tuple[str, ...]


def mirror(registry: Registry, name: str, tracking_uri: str, *, files: bool = True) -> Mirrored:
    """Brings a registered model of MLflow to the state of a model: one run and one version for each version, the same aliases.

    What is there already is left as it is, so the same command can follow every change. Versions that were deleted here stay there.

    Args:
      registry: The registry.
      name: The model.
      tracking_uri: MLflow's server, or a folder as ``file:…``.
      files: Whether the files of versions are copied too; without them MLflow's versions point to where they lie here.

    Returns:
      What was done.

    Raises:
      ConfigError: There is no such model, or MLflow has versions of this name that are not of this registry.
      DependencyError: MLflow is not installed.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise DependencyError("Mirroring needs MLflow; install it with pip install 'flaxbert[mlflow]'.")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    state = registry.state(name)
    try:
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        there = _versions(client, name)
        added = {}
        for number, record in sorted(state.versions.items()):
            if record.digest not in there:
                there[record.digest] = added[number] = _add(client, registry, name, record, files)
        wanted = {alias: there[state.versions[number].digest] for alias, number in state.aliases.items()}
        removed = _move_aliases(client, name, wanted)
    except MlflowException as error:
        raise ConfigError(f"MLflow at {tracking_uri} refuses: {error}") from error
    return Mirrored(added, wanted, removed)


def _versions(client: Any, name: str) -> dict[str, int]:
    """Returns MLflow's numbers of the versions by digest; makes the model where there is none."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
        return {}
    found = {}
    for version in client.search_model_versions(f"name = '{name}'"):
        digest = version.tags.get(DIGEST_TAG)
        if digest is None:
            raise ConfigError(
                f"MLflow has a model {name} with versions of another origin (version {version.version}); mirror under a name of its own."
            )
        found[digest] = int(version.version)
    return found


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found is not None else client.create_experiment(name)


def _add(client: Any, registry: Registry, name: str, record: VersionRecord, files: bool) -> int:
    """Makes a run and a version of it, and returns MLflow's number."""
    run = client.create_run(_experiment(client, name), run_name=f"{name}:{record.number}")
    identity = run.info.run_id
    for key, value in describe(registry, name, record).items():
        client.log_param(identity, key, value)
    for key, value in record.metrics.items():
        client.log_metric(identity, key, value)
    source = f"{registry.location}/{name}/versions/{record.folder}"
    if files:
        client.log_artifacts(identity, str(registry.folder(Reference(name, record.number), verify=True)), "model")
        source = f"{run.info.artifact_uri}/model"
    client.set_terminated(identity)
    tags = {DIGEST_TAG: record.digest, NUMBER_TAG: str(record.number)}
    made = client.create_model_version(name, source, run_id=identity, tags=tags, description=record.note or None)
    return int(made.version)


def _move_aliases(client: Any, name: str, wanted: dict[str, int]) -> tuple[str, ...]:
    before = dict(client.get_registered_model(name).aliases)
    for alias, number in wanted.items():
        if int(before.get(alias, 0)) != number:
            client.set_registered_model_alias(name, alias, str(number))
    removed = tuple(alias for alias in before if alias not in wanted)
    for alias in removed:
        client.delete_registered_model_alias(name, alias)
    return removed
