"""What flaxbert imports is declared, what is declared is imported, and torch and TensorFlow are neither."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable

import pytest

from tests.architecture.import_graph import imported_names
from tests.architecture.sources import Source, expect_none, parse, read_sources
from tests.helpers import ROOT, run_python

ORACLES = {"torch", "tensorflow", "keras", "keras_hub", "sentence_transformers", "onnxruntime"}
"""Libraries that tests and benchmarks compare with; the product runs without them."""

COMPARES = "flaxbert/evaluation/reference.py"
"""The file behind ``flaxbert verify``, which compares with torch where that is installed, inside functions only."""

DISTRIBUTIONS = {
    "google": "protobuf",
    "grpc": "grpcio",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "orbax": "orbax-checkpoint",
}
"""Distributions whose import name is another; elsewhere the two differ in case and dashes only."""

OPTIONAL = {
    "ray": "flaxbert/cluster/",
    "onnx": "flaxbert/export/",
    "opentelemetry": "flaxbert/serve/tracing.py",
    "mlflow": "flaxbert/registry/mlflow_mirror.py",
}
"""Libraries that an extra installs, with the folder or file whose functions alone may import them."""

EXTRAS = {
    "opentelemetry": ("otel", {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"}),
    "mlflow": ("mlflow", {"mlflow-skinny"}),
}
"""Extra and distributions of an optional library; elsewhere both have its name."""

WHOLE_FOLDERS = {"serve": "flaxbert/serve/", "grpc": "flaxbert/serve/rpc/"}
"""Extras whose libraries a folder may import as it likes, because nothing outside of it imports it but one file."""

ENTRANCES = {"serve": "flaxbert/cli/serve.py", "grpc": "flaxbert/serve/app.py"}
"""That file, which imports it inside functions only."""

BROUGHT_ALONG = {
    "pydantic": "fastapi",
    "starlette": "fastapi",
    "pandas": "datasets",
    "pyarrow": "datasets",
    "scipy": "scikit-learn",
    "tensorstore": "orbax-checkpoint",
    "jaxlib": "jax",
    "typing_extensions": "flax",
    "ml_dtypes": "jax",
    "h11": "httpx2",
}
"""Imports that a declared dependency is built on and always installs."""

STARTED = {"uvloop", "httptools"}
"""Libraries that uvicorn is told to use by their names."""

READ_BY_OTHERS = {
    "pyyaml": "jsonargparse reads configuration files with it",
    "emoji": "transformers' tokenizer of BERTweet writes emojis as words with it",
    "sentencepiece": "transformers reads the vocabularies of ALBERT, XLM-R and DeBERTa with it",
    "safetensors": "transformers writes and reads the files that we write and read",
    "tokenizers": "the fast tokenizers inside transformers",
}
"""Declared dependencies that our code may use without importing them itself."""


def normal(name: str) -> str:
    """Returns a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    """Returns the distribution that a requirement such as ``jax[tpu]>=0.10`` names."""
    return normal(re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0])


def declared(section: str = "core") -> set[str]:
    """Returns the distributions of the core or of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] if section == "core" else project["optional-dependencies"][section]
    return {requirement_name(requirement) for requirement in requirements}


def third_party(source: Source) -> set[str]:
    """Returns the top-level names of libraries that a file imports, functions included."""
    names = {name.split(".")[0] for name in imported_names(source)}
    return names - set(sys.stdlib_module_names) - {"flaxbert", "tests", ""}


def undeclared(sources: Iterable[Source], distributions: set[str]) -> list[str]:
    """Returns imports of libraries that no declared dependency stands for."""
    return [
        f"{source.path} imports {name}, which pyproject.toml does not declare"
        for source in sources
        for name in sorted(third_party(source) - (ORACLES if source.path == COMPARES else set()))
        if not source.path.startswith(OPTIONAL.get(name, "outside"))
        if normal(DISTRIBUTIONS.get(name, BROUGHT_ALONG.get(name, name))) not in distributions | of_folder(source)
    ]


def of_folder(source: Source) -> set[str]:
    """Returns the distributions that the extra of a file's folder installs."""
    return {
        name for extra, folder in WHOLE_FOLDERS.items() if source.path.startswith(folder) for name in declared(extra)
    }


def oracles(sources: Iterable[Source]) -> list[str]:
    """Returns imports of libraries that are only there to compare with, written as statements or as calls."""
    found = []
    for source in sources:
        found += [f"{source.path} imports {name}" for name in sorted(third_party(source) & ORACLES)]
        calls = [node for node in ast.walk(source.tree) if isinstance(node, ast.Call) and node.args]
        found += [
            f"{source.path}:{node.lineno} imports {node.args[0].value}"
            for node in calls
            if ast.unparse(node.func) in {"importlib.import_module", "import_module", "__import__"}
            and isinstance(node.args[0], ast.Constant)
            and str(node.args[0].value).split(".")[0] in ORACLES
        ]
    return found


def test_every_import_is_declared() -> None:
    expect_none(undeclared(read_sources("flaxbert"), declared()))


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_an_extra_installs_is_declared_and_imported_inside_functions(name: str) -> None:
    extra, distributions = EXTRAS.get(name, (name, {name}))
    assert distributions <= declared(extra)
    users = [source for source in read_sources("flaxbert") if name in third_party(source)]
    assert users
    expect_none(
        f"{source.path} imports {name} outside of functions"
        for source in users
        if name in {module.split(".")[0] for module in imported_names(source, only_at_import=True)}
    )


@pytest.mark.parametrize(("extra", "folder"), WHOLE_FOLDERS.items())
def test_what_a_folder_needs_is_imported_there_and_the_folder_by_one_file_alone(extra: str, folder: str) -> None:
    sources = read_sources("flaxbert")
    found = {name for source in sources if source.path.startswith(folder) for name in third_party(source)}
    used = {normal(DISTRIBUTIONS.get(name, name)) for name in found}
    used |= {normal(BROUGHT_ALONG[name]) for name in ("pydantic", "starlette")}
    used.add("flaxbert")  # an extra may bring another one
    expect_none(
        f"the extra {extra} declares {name}, which nothing imports" for name in declared(extra) - used - STARTED
    )
    package = folder.rstrip("/").replace("/", ".")
    expect_none(
        f"{source.path} imports {name}"
        for source in sources
        if not source.path.startswith((folder, "flaxbert/cluster/serving.py"))
        for name in imported_names(source, only_at_import=source.path == ENTRANCES[extra])
        if name == package or name.startswith(f"{package}.")
    )


def test_every_declared_dependency_is_imported() -> None:
    used = {name for source in read_sources("flaxbert") for name in third_party(source)}
    distributions = {normal(DISTRIBUTIONS.get(name, name)) for name in used}
    unused = declared() - distributions - {normal(name) for name in READ_BY_OTHERS}
    expect_none(f"pyproject.toml declares {name}, which nothing imports" for name in sorted(unused))


def test_no_oracle_at_run_time() -> None:
    expect_none(oracles(source for source in read_sources("flaxbert") if source.path != COMPARES))


def test_the_file_that_compares_imports_torch_inside_functions_only() -> None:
    source = next(source for source in read_sources("flaxbert") if source.path == COMPARES)
    assert oracles([source]), "the exception is not needed any more"
    top = [ast.unparse(node) for node in source.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any(name in line.split() for line in top for name in ORACLES)


def test_no_oracle_in_the_core_requirements() -> None:
    assert not declared() & {normal(name) for name in ORACLES}


def test_every_extra_of_the_readme_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["optional-dependencies"]) == {
        "serve",
        "grpc",
        "mlflow",
        "onnx",
        "openvino",
        "otel",
        "ray",
        "s3",
        "sign",
        "tpu",
        "cuda",
        "test",
        "bench",
        "dev",
    }


def test_every_module_is_importable_where_torch_and_tensorflow_are_not() -> None:
    modules = [source.module for source in read_sources("flaxbert") if source.module != "flaxbert.__main__"]
    program = (
        "import importlib, sys\n"
        f"for name in {sorted(ORACLES)!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    result = run_python(["-c", program])
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize(
    "text", ["import torch", "def f():\n  from torch.nn import Linear", "importlib.import_module('tensorflow.keras')"]
)
def test_an_oracle_is_found(text: str) -> None:
    assert len(oracles([parse(text)])) == 1


def test_an_undeclared_import_is_found() -> None:
    source = parse("import os\nimport jax.numpy\nimport yaml\nfrom einops import rearrange\nfrom . import errors\n")
    assert undeclared([source], {"jax", "pyyaml"}) == [
        "flaxbert/snippet.py imports einops, which pyproject.toml does not declare"
    ]
