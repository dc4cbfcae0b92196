"""``flaxbert <command>``: finds the command, parses its options, and turns errors into one clear line."""

import errno
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flaxbert.errors import ConfigError, FlaxbertError, nearest

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("flaxbert.cli.demo", "fine-tune, compress and predict on text that every Python carries, offline"),
    "finetune": ("flaxbert.cli.finetune", "train a model for a task from a config file or options"),
    "distill": ("flaxbert.cli.distill", "train a small model to do what a large one does"),
    "glue": ("flaxbert.cli.glue", "fine-tune on the tasks of GLUE with several seeds and print the usual table"),
    "tokenizer train": ("flaxbert.cli.tokenizer", "learn a tokenizer from raw text"),
    "tokenizer extend": ("flaxbert.cli.tokenizer", "add the words of raw text to the vocabulary of a model"),
    "prepare": ("flaxbert.cli.prepare", "make a tokenized corpus for pre-training of raw text"),
    "pretrain": ("flaxbert.cli.pretrain", "train a model on raw text, from new weights or a checkpoint"),
    "plan pretrain": ("flaxbert.cli.plan", "say what a pre-training run would cost on devices that are not there"),
    "plan finetune": ("flaxbert.cli.plan", "say what a fine-tuning run would cost on devices that are not there"),
    "launch": (
        "flaxbert.cli.launch",
        "run prepare, predict, serve, pretrain or finetune on a cluster: launch [options] -- COMMAND",
    ),
    "evaluate": ("flaxbert.cli.evaluate", "score a model on labelled examples of its task"),
    "predict": ("flaxbert.cli.predict", "label, tag, answer or embed texts from arguments, a file or standard input"),
    "serve": ("flaxbert.cli.serve", "answer requests over HTTP: labels, vectors, entities, answers, by any version"),
    "quantize": ("flaxbert.cli.quantize", "store a model's matrices in few bits: int8, 4 to 1 bits, float8, mixed"),
    "prune": ("flaxbert.cli.prune", "remove layers, heads, neurons, tokens or single weights of a model"),
    "compare": ("flaxbert.cli.compare", "set models side by side: size, speed, quality, error"),
    "recipe": ("flaxbert.cli.recipe", "distil, prune, train, quantize and export in a row, as a file says"),
    "convert": ("flaxbert.cli.convert", "write a checkpoint of any readable format as safetensors"),
    "export": ("flaxbert.cli.export", "write a model for ONNX Runtime, OpenVINO, jax alone or stock transformers"),
    "verify": ("flaxbert.cli.verify", "check a model folder, and compare it with stock transformers"),
    "push": ("flaxbert.cli.push", "upload a model folder to the hub"),
    "checkpoints list": ("flaxbert.cli.checkpoints", "list the saved versions of a run"),
    "checkpoints show": ("flaxbert.cli.checkpoints", "show what one saved version holds"),
    "models add": ("flaxbert.cli.models", "add a model folder to a registry as the next version of a model"),
    "models list": ("flaxbert.cli.models", "list the models of a registry, or the versions of one"),
    "models show": ("flaxbert.cli.models", "show what a version holds and what happened to its model"),
    "models alias": ("flaxbert.cli.models", "move an alias to a version, or remove it"),
    "models promote": ("flaxbert.cli.models", "move an alias to a version if its scores allow it"),
    "models rollback": ("flaxbert.cli.models", "move an alias to the version where it stood before"),
    "models diff": ("flaxbert.cli.models", "show how two versions differ"),
    "models delete": ("flaxbert.cli.models", "delete a version that no alias stands at"),
    "models sign": ("flaxbert.cli.models", "sign a version with a private key"),
    "models tensorboard": ("flaxbert.cli.model_mirrors", "show versions and scores in TensorBoard's HPARAMS tab"),
    "models mlflow": ("flaxbert.cli.model_mirrors", "copy versions, scores and aliases to MLflow's registry"),
    "models verify": ("flaxbert.cli.models", "compare every byte of versions with what was added"),
    "doctor": ("flaxbert.cli.doctor", "check this machine: devices, versions, memory, numerics"),
}
"""Module and one-line description of every command."""

SHORT_OPTIONS = {
    "--profile": ("--train.profile", frozenset({"pretrain", "finetune"})),
    "--data": ("--examples", frozenset({"compare", "quantize", "prune"})),
}
"""Options with a short name, and the commands that have them."""

REGISTRY_PREFIX = "registry:"
"""What words begin with that name a version in a registry instead of a folder: ``registry:NAME@ALIAS``."""

LAUNCHERS = frozenset({"launch"})
"""Commands that run another one: its words follow after ``--``."""

SEVERAL = frozenset({"compare", "serve"})
"""Commands whose first argument is all words before the first option."""

FOLLOWERS = frozenset({"serve"})
"""Commands that follow an alias of a registry instead of taking the version that it means now."""

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_EXPLAINED_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOENT, errno.ENOTDIR})


class UsageError(ConfigError):
    """The words of a command line are not those of its command."""


def _usage() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: flaxbert <command> [options]",
            "",
            "BERT-family encoders on JAX: fine-tune, evaluate, compress and run them.",
            "",
            "commands:",
            *lines,
            "",
            "flaxbert <command> --help documents the options of a command; flaxbert --version prints the version.",
        ]
    )


def _find_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in COMMANDS:
            return name, list(arguments[length:])
    return "", list(arguments)


def _fail(message: str, code: int) -> int:
    print(f"flaxbert: error: {message}", file=sys.stderr)
    return code


def _explain_unknown(arguments: Sequence[str]) -> str:
    words = [word for word in arguments if not word.startswith("-")]
    word = words[0] if words else " ".join(arguments)
    subcommands = [name for name in COMMANDS if name.startswith(f"{word} ")]
    if subcommands:
        return f"'{word}' needs one more word: {', '.join(subcommands)}."
    return f"unknown command '{word}'.{nearest(word, COMMANDS)} Try flaxbert --help."


def _known_keys(parser: Any) -> list[str]:
    return [option.lstrip("-") for action in parser._actions for option in action.option_strings]


def _explain(message: str, keys: Iterable[str]) -> str:
    """Returns a parser's message in one line, with the nearest valid key for one that is not known."""
    message = " ".join(message.split())
    keys = list(keys)
    unknown = re.search(r"unrecognized arguments: --?([\w.\-]+)", message)
    unknown = unknown or re.search(r"[Kk]ey ['\"]([\w.\-]+)['\"] is not expected", message)
    unknown = unknown or re.search(r"does not accept (?:nested )?(?:key|option) ['\"]([\w.\-]+)['\"]", message)
    if unknown is None:
        return message
    word = unknown[1]
    candidates = keys if "." in word else [*keys, *(key.rsplit(".", 1)[-1] for key in keys)]
    return message + nearest(word, candidates)


def build_parser(name: str) -> tuple[Any, Callable[..., Any]]:
    """Returns the option parser of a command and the function that runs it.

    Args:
      name: A key of ``COMMANDS``.
    """
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    module = importlib.import_module(COMMANDS[name][0])
    function = getattr(module, name.rsplit(maxsplit=1)[-1] if " " in name else "run")
    parser = ArgumentParser(
        prog=f"flaxbert {name}",
        description=COMMANDS[name][1][0].upper() + COMMANDS[name][1][1:] + ".",
        exit_on_error=False,
        print_config="--print-config",
    )
    parser.add_argument("--config", action="config", help="YAML file with options; options on the command line win.")
    skip: set[str | int] = {"command"} if name in LAUNCHERS else set()
    parser.add_function_arguments(function, as_positional=True, fail_untyped=True, skip=skip)
    return parser, function


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: The words after ``flaxbert``; None takes those of the process.

    Returns:
      Exit code: 0 for success, 1 for an error that the message explains, 2 for wrong usage, 130 or 143 when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        import flaxbert

        print(f"flaxbert {flaxbert.__version__}")
        return 0
    return _run_command(arguments)


def parse_command(name: str, words: Sequence[str]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Returns the function of a command and its arguments.

    Args:
      name: A key of ``COMMANDS``.
      words: Its options.

    Raises:
      UsageError: The options are not those of the command, or their values are not usable.
    """
    import jsonargparse

    parser, function = build_parser(name)
    own, launched = list(words), {}
    if name in LAUNCHERS:
        place = own.index("--") if "--" in own else len(own)
        own, launched = own[:place], {"command": tuple(own[place + 1 :])}
    if name in SEVERAL:
        place = next((index for index, word in enumerate(own) if word.startswith("-")), len(own))
        own = [*([json.dumps(own[:place])] if place else []), *own[place:]]
    for short, (full, commands) in SHORT_OPTIONS.items():
        if name in commands:
            own = [full + word.removeprefix(short) if word.split("=")[0] == short else word for word in own]
    own = ["--dry_run=true" if word == "--dry-run" else word for word in own]
    try:
        values = parser.instantiate(parser.parse_args(own))
    except (jsonargparse.ArgumentError, FlaxbertError, TypeError, ValueError) as error:
        raise UsageError(_explain(str(error), _known_keys(parser)) + f" See flaxbert {name} --help.") from error
    keywords = {key: value for key, value in vars(values).items() if key not in ("config", "print-config")}
    return function, {**keywords, **launched}


def _from_registry(word: str) -> str:
    """Returns a word in which ``registry:REFERENCE`` stands for the folder of the version that is meant now."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if not value.startswith(REGISTRY_PREFIX):
        return word
    from flaxbert.registry import Registry

    return f"{option}{equals}{Registry().folder(value.removeprefix(REGISTRY_PREFIX))}"


def _prepare(arguments: Sequence[str]) -> Callable[[], int]:
    """Returns the whole command, ready to be run."""
    name, rest = _find_command(arguments)
    if not name:
        raise UsageError(_explain_unknown(arguments))
    words = rest if name in FOLLOWERS else [_from_registry(word) for word in rest]
    function, keywords = parse_command(name, words)
    return lambda: int(function(**keywords) or 0)


def execute(arguments: Sequence[str]) -> int:
    """Runs one command and lets its errors rise, for programs that run commands.

    Args:
      arguments: The words after ``flaxbert``.

    Returns:
      The exit code of the command.

    Raises:
      UsageError: There is no such command, or its options are wrong.
      FlaxbertError: What the command raises.
    """
    return _prepare(arguments)()


def _run_command(arguments: Sequence[str]) -> int:
    try:
        command = _prepare(arguments)
    except UsageError as error:
        return _fail(str(error), EXIT_USAGE)
    except FlaxbertError as error:  # of a registry
        return _fail(str(error), EXIT_ERROR)
    except SystemExit as stop:  # --help and --print-config
        return int(stop.code or 0)
    try:
        return command()
    except UsageError as error:  # of the command that a launcher runs
        return _fail(str(error), EXIT_USAGE)
    except FlaxbertError as error:
        return _fail(str(error), EXIT_ERROR)
    except OSError as error:
        if error.errno in _EXPLAINED_ERRORS:
            return _fail(
                f"{error.strerror}: {error.filename or 'while writing'}. Nothing half-written was kept.", EXIT_ERROR
            )
        raise
    except KeyboardInterrupt:
        return _fail("interrupted.", EXIT_INTERRUPTED)
