"""A text classification corpus that every Python carries: docstrings of the standard library and the area they belong to.

Files are read with ``ast``; no module is imported. The areas follow the sections of the Python library reference.
Left out are modules that the oldest or the newest supported Python lacks, and IDLE, an application of many areas.
"""

import ast
import dataclasses
import hashlib
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flaxbert.errors import DataError

AREA_MODULES: Mapping[str, str] = {
    "text": """
        string re sre_compile sre_constants sre_parse difflib textwrap stringprep codecs encodings html xml
        _markupbase locale gettext""",
    "data types": """
        datetime _pydatetime _strptime zoneinfo calendar collections _collections_abc heapq bisect weakref _weakrefset
        types copy pprint reprlib enum graphlib dataclasses abc _py_abc functools array""",
    "mathematics": "numbers decimal _pydecimal fractions random statistics secrets operator colorsys",
    "files": """
        pathlib posixpath ntpath genericpath fileinput stat filecmp tempfile glob fnmatch linecache shutil pickle
        shelve dbm sqlite3 gzip bz2 lzma compression zipfile tarfile csv configparser
        tomllib plistlib io _pyio""",
    "concurrency": """
        threading _threading_local multiprocessing concurrent subprocess sched queue asyncio selectors signal
        """,
    "network": """
        socket ssl email mailbox mimetypes base64 quopri urllib http ftplib poplib imaplib smtplib socketserver
        xmlrpc ipaddress wsgiref webbrowser uuid netrc""",
    "development": """
        typing pydoc doctest unittest bdb pdb profile cProfile pstats timeit trace tracemalloc
        ensurepip venv zipapp sysconfig warnings traceback inspect site code codeop zipimport pkgutil modulefinder
        runpy importlib ast symtable token tokenize keyword tabnanny pyclbr py_compile compileall dis
        opcode pickletools""",
    "interfaces": "tkinter turtle turtledemo curses cmd shlex rlcompleter _pyrepl argparse optparse getopt getpass",
}
"""Areas of the library, and the top-level modules and packages in each; modules of no area are left out."""

MIN_CHARACTERS = 80
"""Shorter docstrings ("Return a copy.") say nothing about an area."""

MAX_EXAMPLES_PER_AREA = 500
"""Most examples of one area, over both splits."""

_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})


@dataclasses.dataclass(frozen=True)
class DocstringExample:
    """One docstring.

    Attributes:
      text: The docstring with white space folded.
      label: Area of the library.
      file: Source file, relative to the library's folder, with forward slashes.
    """

    text: str
    label: str
    file: str


@dataclasses.dataclass(frozen=True)
class DocstringCorpus:
    """The corpus, split by source file.

    Attributes:
      train: Training examples.
      validation: Held-out examples, from files that no training example comes from.
      labels: The areas in the order of their numbers.
    """

    train: tuple[DocstringExample, ...]
    validation: tuple[DocstringExample, ...]
    labels: tuple[str, ...]


def module_area(module: str) -> str:
    """Returns the area of a dotted module name, or an empty string where it belongs to none.

    Example:
      >>> module_area("email.mime.text")
      'network'
    """
    top = module.partition(".")[0]
    return next((area for area, modules in AREA_MODULES.items() if top in modules.split()), "")


def build_corpus(
    library: Path | None = None,
    *,
    seed: int = 0,
    validation_rate: float = 0.2,
    max_examples_per_area: int = MAX_EXAMPLES_PER_AREA,
    min_characters: int = MIN_CHARACTERS,
) -> DocstringCorpus:
    """Collects the corpus.

    A text is a docstring without its doctest examples and with white space folded. That of a method follows the first
    paragraph of its class's, as in the printed documentation. Names of modules, classes and functions are not part of it.
    The first of equal texts is kept; whole source files are held out, chosen per area.

    Args:
      library: Folder of the standard library's sources; by default this Python's.
      seed: Decides which examples are kept and which files are held out.
      validation_rate: Share of each area's examples to hold out, approximately, in (0, 1).
      max_examples_per_area: Most examples of one area, over both splits.
      min_characters: Least length of a docstring.

    Returns:
      The examples of both splits, and the areas.

    Raises:
      DataError: The folder holds too few sources, for example because this Python carries compiled files only.
    """
    folder = library or Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    by_area: dict[str, list[DocstringExample]] = {area: [] for area in AREA_MODULES}
    for path, area in _library_files(folder):
        name = path.relative_to(folder).as_posix()
        for text in _docstring_texts(path, min_characters):
            if text not in seen:
                seen.add(text)
                by_area[area].append(DocstringExample(text, area, name))
    train: list[DocstringExample] = []
    validation: list[DocstringExample] = []
    for examples in by_area.values():
        kept = sorted(examples, key=lambda example: _digest(seed, example.file, example.text))[:max_examples_per_area]
        held_out = _held_out_files(kept, validation_rate, seed)
        train.extend(example for example in kept if example.file not in held_out)
        validation.extend(example for example in kept if example.file in held_out)
    labels = tuple(AREA_MODULES)
    split_labels = [{example.label for example in split} for split in (train, validation)]
    lacking = [label for label in labels if not all(label in present for present in split_labels)]
    if lacking:
        raise DataError(
            f"{folder}: too few docstrings for {', '.join(lacking)} (this Python may lack its sources, or parts of the "
            "library). Install the full standard library, or use another Python."
        )
    return DocstringCorpus(tuple(train), tuple(validation), labels)


def _library_files(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        area = module_area(parts[0].removesuffix(".py"))
        if area and not _SKIPPED_FOLDERS.intersection(parts):
            yield path, area


def _docstring_texts(path: Path, min_characters: int) -> Iterator[str]:
    try:
        module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # some files of the library are made to be broken, or belong to another Python
    for own, owner in [(ast.get_docstring(module) or "", ""), *_documented(module, "")]:
        text = _prose(own)
        if len(text) >= min_characters:
            yield f"{owner} {text}".strip()


def _documented(node: ast.AST, owner: str) -> Iterator[tuple[str, str]]:
    """Yields docstrings below a node, each with the first paragraph of its class's docstring."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            own = ast.get_docstring(child) or ""
            yield own, owner
            yield from _documented(child, _prose(own.partition("\n\n")[0]) if isinstance(child, ast.ClassDef) else "")
        else:
            yield from _documented(child, owner)


def _prose(docstring: str) -> str:
    """Returns a docstring without doctest examples and with white space folded."""
    kept: list[str] = []
    inside_example = False
    for line in docstring.splitlines():
        words = line.strip()
        inside_example = words.startswith(">>>") or (inside_example and bool(words))
        if not inside_example:
            kept.append(words)
    return " ".join(" ".join(kept).split())


def _held_out_files(examples: Sequence[DocstringExample], validation_rate: float, seed: int) -> set[str]:
    """Chooses files in random order until the share is reached; a file that would go far beyond it is passed over."""
    counts = Counter(example.file for example in examples)
    wanted = validation_rate * len(examples)
    held_out: set[str] = set()
    total = 0
    for file in sorted(counts, key=lambda name: _digest(seed, name)):
        if total < wanted and total + counts[file] <= 1.25 * wanted:
            held_out.add(file)
            total += counts[file]
    return held_out


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
