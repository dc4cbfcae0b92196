"""From a path or an id on the Hugging Face hub to a folder on this machine."""

import os
import pathlib
import re
from collections.abc import Sequence

from flaxbert.errors import WeightsError
from flaxbert.weights.tokenizer_files import TOKENIZER_PATTERNS

ALLOWED_FILES = (
    "config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "flaxbert_*.json",
    *TOKENIZER_PATTERNS,
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "*_Dense/config.json",
    "*_Dense/model.safetensors",
    "*_Normalize/config.json",
    "*_Transformer/*.json",
    "*_Transformer/vocab.txt",
    "*_Transformer/model.safetensors",
)
"""Files of a model repository that are fetched first."""

OTHER_WEIGHTS: tuple[tuple[str, ...], ...] = (
    ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"),
    ("flax_model.msgpack", "flax_model-*.msgpack", "flax_model.msgpack.index.json"),
    ("*ckpt*.index", "*ckpt*.data-*", "bert_config.json", "albert_config.json"),
)
"""What is fetched where a repository has no safetensors: the first of these formats that it has."""

IGNORED_FILES = ("onnx/*", "openvino/*", "adapter_model.*", "*.h5")
"""Files that are never fetched, even where a pattern above fits."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def looks_like_path(text: str) -> bool:
    """Returns whether a text can only be meant as a path, not as an id on the hub.

    Args:
      text: What the user wrote.
    """
    return text.startswith((".", "/", "~")) or "\\" in text or text.endswith("/") or text.count("/") > 1


def resolve(path_or_id: str | pathlib.Path, revision: str | None = None, offline: bool = False) -> pathlib.Path:
    """Returns the folder of a model: a local one as it is, one of the hub from the cache or freshly fetched.

    Args:
      path_or_id: Folder, or id on the hub such as ``google-bert/bert-base-uncased``.
      revision: Branch, tag or commit on the hub; None takes the main branch. Pin a commit for repeatable runs.
      offline: Use only what is already in the cache of this machine.

    Raises:
      WeightsError: There is no such folder; the id or revision does not exist or is private; the hub can not be reached;
        or, offline, the id is not in the cache.
    """
    text = str(path_or_id)
    path = pathlib.Path(text).expanduser()
    if not text:
        raise WeightsError("No model is named; give the path of a model folder or an id on the hub.")
    if path.exists():
        return path
    if isinstance(path_or_id, pathlib.Path) or looks_like_path(text):
        near = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        beside = f" {path.parent} holds {', '.join(near[:10])}." if near else f" Nor does {path.parent}."
        raise WeightsError(f"The model folder '{text}' does not exist.{beside}")
    if not _ID.fullmatch(text):
        raise WeightsError(f"'{text}' is neither a folder nor an id on the hub (owner/name).")
    return _fetch(text, revision or None, offline)


def _fetch(model_id: str, revision: str | None, offline: bool) -> pathlib.Path:
    from huggingface_hub import constants, errors, snapshot_download

    offline = offline or constants.HF_HUB_OFFLINE
    at = f"'{model_id}'" + (f" at revision '{revision}'" if revision else "")
    login_hint = "If it is private or gated, log in with 'hf auth login'."

    def download(patterns: Sequence[str]) -> pathlib.Path:
        return pathlib.Path(
            snapshot_download(
                model_id,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(IGNORED_FILES),
                local_files_only=offline,
            )
        )

    try:
        folder, wanted = download(ALLOWED_FILES), ("**/*.safetensors",)
        for patterns in OTHER_WEIGHTS:
            if any(list(folder.glob(pattern)) for pattern in wanted):
                break
            folder, wanted = download(patterns), patterns
        return folder
    except errors.GatedRepoError as error:
        raise WeightsError(f"The model {at} is gated: accept its terms on the hub first. {login_hint}") from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"The model '{model_id}' has no revision '{revision}' on the hub.") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"There is no folder '{model_id}', and no model of this id on the hub. Check the spelling. {login_hint}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise WeightsError(_not_cached(at, offline, error)) from error
    except errors.HfHubHTTPError as error:
        raise WeightsError(f"The hub answered with an error for {at}: {error}.") from error
    except OSError as error:
        if error.errno is not None:
            place = error.filename or os.environ.get("HF_HOME", "the hub's cache")
            raise WeightsError(f"{at} can not be stored at {place}: {error.strerror}.") from error
        raise WeightsError(_not_cached(at, offline, error)) from error
    except errors.HFValidationError as error:
        raise WeightsError(f"'{model_id}' is neither a folder nor an id on the hub (owner/name): {error}") from error
    except getattr(errors, "HTTPError", OSError) as error:  # of whichever library the hub's client uses
        raise WeightsError(_not_cached(at, offline, error)) from error


def _not_cached(at: str, offline: bool, error: BaseException) -> str:
    if offline:
        return (
            f"There is no folder {at}, and the model is not in the hub's cache of this machine. The run is offline "
            "(--model.offline or HF_HUB_OFFLINE): fetch it once without that, or give a folder."
        )
    reason = str(error.__cause__ or error).splitlines()[0]
    return (
        f"There is no folder {at}, and the hub can not be reached to fetch it ({reason}). Check the network, or give the "
        "path of a folder."
    )
