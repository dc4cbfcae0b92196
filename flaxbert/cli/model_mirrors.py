"""``flaxbert models tensorboard`` and ``models mlflow``: what a registry holds, shown by other tools."""


def tensorboard(name: str, folder: str, registry: str = "") -> int:
    """Writes every version of a model with its scores as a run of TensorBoard, for the HPARAMS tab; versions that are there stay as they are.

    Args:
      name: The model.
      folder: Folder of TensorBoard's runs, for tensorboard --logdir.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.

    Returns:
      The exit code.
    """
    from flaxbert.registry import Registry
    from flaxbert.registry.tensorboard import write_hparams

    written = write_hparams(Registry(registry), name, folder)
    print(f"Wrote {len(written)} versions of {name} to {folder}/{name}." if written else f"{name} is there already.")
    return 0


def mlflow(name: str, tracking_uri: str, registry: str = "", files: bool = True) -> int:
    """Brings a model of MLflow's registry to the state of a model here: the versions with scores and files, and the aliases.

    Called again, it adds what is new and moves the aliases. Versions that were deleted here stay there.

    Args:
      name: The model; MLflow's has the same name.
      tracking_uri: MLflow's server, for example http://localhost:5000, or sqlite:///mlflow.db.
      registry: Folder or URL of the registry; empty takes FLAXBERT_REGISTRY.
      files: Whether the files of versions are copied too.

    Returns:
      The exit code.
    """
    from flaxbert.registry import Registry
    from flaxbert.registry.mlflow_mirror import mirror

    done = mirror(Registry(registry), name, tracking_uri, files=files)
    for number, there in done.added.items():
        print(f"{name}:{number} is version {there} in MLflow.")
    aliases = ", ".join(f"{alias} {number}" for alias, number in done.aliases.items()) or "none"
    print(f"Aliases in MLflow: {aliases}." + (f" Taken away: {', '.join(done.removed)}." if done.removed else ""))
    return 0
