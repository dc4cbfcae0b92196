"""The exceptions that flaxbert raises on purpose.

Every message says what is wrong with which value, where it came from, and how to mend it. A command prints such a message
without a traceback and ends with a non-zero exit code; any other exception is a defect of flaxbert.
"""

import difflib
from collections.abc import Iterable


class FlaxbertError(Exception):
    """Base of every error that flaxbert raises on purpose."""


class ConfigError(FlaxbertError, ValueError):
    """A configuration value, key or combination of values is not usable."""


class DataError(FlaxbertError, ValueError):
    """Input data is missing, malformed or does not fit the task."""


class ShapeError(FlaxbertError, ValueError):
    """An array or tensor has other axes than its place asks for."""


class RuleError(FlaxbertError, ValueError):
    """An ordered rule list is not total: a leaf without a rule, or a rule without a leaf."""


class WeightsError(FlaxbertError, ValueError):
    """A checkpoint of weights can not be read, is incomplete, or holds tensors that nothing accounts for."""


class CheckpointError(FlaxbertError, RuntimeError):
    """A training checkpoint can not be saved, found, verified or restored."""


class MeshError(FlaxbertError, ValueError):
    """A mesh shape does not fit the devices, the model or the batch."""


class TrainingError(FlaxbertError, RuntimeError):
    """Training can not go on, for example because the loss is not finite."""


class MemoryLimitError(FlaxbertError, RuntimeError):
    """A compiled step would need more memory than the device or the container has."""


class RegistryError(FlaxbertError, RuntimeError):
    """The place of a registry can not be reached or refuses to be read or written; what it holds may be right."""


class ClusterError(FlaxbertError, RuntimeError):
    """A cluster can not be reached, has no room for a job, or its nodes do not share what they must share."""


class ServerError(FlaxbertError, RuntimeError):
    """A server refused a request, could not answer it, or was not reached.

    Attributes:
      message: What the server says.
      status: Status of HTTP; 0 where no answer came.
      error_type: Name of the kind of error, as the server has it; ``unreachable`` or ``timeout`` where no answer came.
    """

    def __init__(self, message: str, status: int = 0, error_type: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.error_type = error_type


class DependencyError(FlaxbertError, ImportError):
    """An optional package is needed that is not installed."""


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Returns a sentence that suggests the candidates nearest to ``word``, or an empty string.

    Args:
      word: The unknown name.
      candidates: The names that would have been accepted.

    Returns:
      For example ``" Did you mean 'learning_rate'?"``, with a leading space, ready to append to a message.

    Example:
      >>> nearest("learnin_rate", ["learning_rate", "batch_size"])
      " Did you mean 'learning_rate'?"
    """
    matches = difflib.get_close_matches(word, list(candidates), n=3, cutoff=0.5)
    if not matches:
        return ""
    return " Did you mean " + " or ".join(f"'{match}'" for match in matches) + "?"
