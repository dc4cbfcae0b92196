"""Uploading a model folder to the Hugging Face hub."""

import dataclasses
import pathlib
from typing import Any

from flaxbert.architecture import PIPELINE_TAGS
from flaxbert.core.units import format_bytes
from flaxbert.errors import ConfigError, WeightsError
from flaxbert.families import FAMILIES, get_family
from flaxbert.weights.folder import check_folder, declared_task
from flaxbert.weights.readers import read_json_object
from flaxbert.weights.sentence_transformers import transformer_folder

CARD_FILE = "README.md"
"""Name of the model card."""

SKIPPED = (".*", "*.partial", "checkpoints/*", "events.out.*", "__pycache__/*")
"""Files of a run's folder that are no part of a model."""


@dataclasses.dataclass(frozen=True)
class Upload:
    """What is to be uploaded, and where to.

    Attributes:
      folder: The model folder.
      repository: Id on the hub, ``owner/name``.
      revision: Branch.
      private: Whether a repository that does not exist yet is made private.
      message: Commit message.
      files: Size in bytes by path inside the folder.
      card: Text of a model card to add; empty where the folder has one.
    """

    folder: pathlib.Path
    repository: str
    revision: str
    private: bool
    message: str
    files: dict[str, int]
    card: str

    def to_text(self) -> str:
        """Returns the plan as lines for a person."""
        where = f"{self.repository} ({self.revision}{', private if new' if self.private else ''})"
        lines = [f"{self.folder} to {where}: {len(self.files)} files, {format_bytes(sum(self.files.values()))}"]
        lines += [f"  {name}  {format_bytes(size)}" for name, size in sorted(self.files.items())]
        if self.card:
            lines += [f"  {CARD_FILE}, newly written:", *(f"    {line}" for line in self.card.splitlines())]
        return "\n".join(lines)


def _card(folder: pathlib.Path, repository: str) -> str:
    settings = read_json_object(transformer_folder(folder) / "config.json")
    sentence = (folder / "modules.json").is_file()
    task, architecture = declared_task(settings, get_family(str(settings["model_type"])))
    tag = PIPELINE_TAGS.get("sentence-similarity" if sentence else task or "feature-extraction")
    lines = [
        "---",
        f"library_name: {'sentence-transformers' if sentence else 'transformers'}",
        "tags:",
        "- flaxbert",
        f"- {settings['model_type']}",
        *([f"pipeline_tag: {tag}"] if tag else []),
        "---",
        "",
        f"# {repository.rsplit('/', 1)[-1]}",
        "",
        f"A {settings['model_type']} model ({architecture or 'no head named'}), saved by flaxbert.",
    ]
    return "\n".join(lines) + "\n"


def plan_upload(
    folder: str | pathlib.Path, repository: str, *, revision: str = "main", private: bool = False, message: str = ""
) -> Upload:
    """Checks a folder and says what would be uploaded; contacts nobody.

    Args:
      folder: A model folder.
      repository: Id on the hub, ``owner/name``.
      revision: Branch; one that does not exist is made.
      private: Whether a repository that does not exist yet is made private.
      message: Commit message; empty for a usual one.

    Returns:
      The plan.

    Raises:
      ConfigError: The id is no ``owner/name``.
      WeightsError: The folder is no model.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import filter_repo_objects, validate_repo_id

    folder = pathlib.Path(folder)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"'{repository}' is no id on the hub (owner/name): {error}") from error
    if repository.count("/") != 1:
        raise ConfigError(f"'{repository}' is no id on the hub; write it as owner/name.")
    check_folder(folder)
    kind = read_json_object(transformer_folder(folder) / "config.json").get("model_type")
    if kind not in FAMILIES:
        raise WeightsError(f"{folder} holds a model of type '{kind}', which flaxbert does not know.")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    kept = filter_repo_objects(names, ignore_patterns=list(SKIPPED))
    files = {name: names[name] for name in kept}
    card = "" if CARD_FILE in files else _card(folder, repository)
    return Upload(folder, repository, revision, private, message or "Upload model with flaxbert", files, card)


def upload(plan: Upload, api: Any = None) -> str:
    """Uploads a folder in one commit.

    Args:
      plan: From ``plan_upload``.
      api: A client of the hub; None makes the usual one, with the token of ``hf auth login``.

    Returns:
      The address of the commit.

    Raises:
      WeightsError: The hub refuses or can not be reached; nothing is half-uploaded, since a commit is whole.
    """
    import huggingface_hub
    from huggingface_hub import errors

    client = huggingface_hub.HfApi() if api is None else api
    try:
        client.create_repo(plan.repository, private=plan.private, exist_ok=True)
        if plan.revision != "main":
            client.create_branch(plan.repository, branch=plan.revision, exist_ok=True)
        operations = [huggingface_hub.CommitOperationAdd(name, str(plan.folder / name)) for name in sorted(plan.files)]
        if plan.card:
            operations.append(huggingface_hub.CommitOperationAdd(CARD_FILE, plan.card.encode("utf-8")))
        commit = client.create_commit(plan.repository, operations, commit_message=plan.message, revision=plan.revision)
    except errors.HfHubHTTPError as error:
        hint = "Log in with 'hf auth login' and a token that may write."
        raise WeightsError(f"The hub refuses the upload to '{plan.repository}': {error}. {hint}") from error
    except (OSError, getattr(errors, "HTTPError", OSError)) as error:
        raise WeightsError(f"The hub can not be reached for '{plan.repository}': {error}.") from error
    return str(commit.commit_url)
