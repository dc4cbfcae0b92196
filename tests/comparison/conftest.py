"""One tiny model, stored in several ways, and examples for it."""

import dataclasses
import pathlib

import pytest

from flaxbert.cli.main import main
from flaxbert.cli.quantize import quantize_model
from flaxbert.comparison.compare import compare_models
from flaxbert.comparison.results import Comparison
from flaxbert.comparison.settings import ComparisonSettings
from flaxbert.config import DataConfig, QuantizeConfig
from flaxbert.model import load
from tests.weights.tiny import write_tiny

TEXTS = ["fine", "bad film", "the film was bad .", "a fine film", "films", "was fine .", "bad . bad", "the films"]

QUICK = ComparisonSettings(batch_sizes=(2,), rounds=3, num_texts=4, num_resamples=20, loading=False)
"""Enough to have a number of each kind."""


def write_examples(file: pathlib.Path, rows, header="text\tlabel") -> str:
    file.write_text("\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n", "utf-8")
    return str(file)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders by name: the float model first, then what was made of it."""
    root = tmp_path_factory.mktemp("compared")
    folders = {name: str(root / name) for name in ("float", "int8", "int4", "sparse", "both")}
    write_tiny(root / "float")
    quantize_model(folders["float"], folders["int8"])
    quantize_model(folders["float"], folders["int4"], QuantizeConfig(bits=4, group_size=4))
    assert main(["prune", folders["float"], folders["sparse"], "--pattern", "2:4"]) == 0
    quantize_model(folders["sparse"], folders["both"])
    return folders


@pytest.fixture(scope="session")
def examples(models, tmp_path_factory) -> str:
    """The float model's own labels, two of them wrong."""
    names = ("bad", "fair", "good")
    labels = [prediction.label for prediction in load(models["float"]).predict(TEXTS)]
    labels = [names[(names.index(label) + (index < 2)) % 3] for index, label in enumerate(labels)]
    return write_examples(tmp_path_factory.mktemp("examples") / "dev.tsv", zip(TEXTS, labels, strict=True))


@pytest.fixture(scope="session")
def comparison(models, examples) -> Comparison:
    """Four of them compared on the examples, two at a time where they are timed."""
    settings = dataclasses.replace(QUICK, examples=examples, together=3)
    sources = [models[name] for name in ("float", "int8", "int4", "both")]
    return compare_models(sources, settings, DataConfig(max_length=0), command="flaxbert compare …")
