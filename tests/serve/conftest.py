"""One server with a model of every task, for all tests of this folder; it ends with them, since others count what threads of the process do."""

import dataclasses
from collections.abc import Iterator

import pytest

import flaxbert
from flaxbert.config import AccessConfig
from flaxbert.serve.app import make_app
from flaxbert.serve.loading import parse_specs
from flaxbert.weights.sentence_transformers import SentencePooling
from tests.serve.running import SMALL, running
from tests.weights.tiny import CONFIG, write_tiny

BASE = CONFIG.replace(max_position_embeddings=32)

KEY = "key-of-a-user"
"""What the server ``locked`` asks for."""


@dataclasses.dataclass(frozen=True)
class Serving:
    """A server that runs, and its models as ``flaxbert.load`` loads them."""

    url: str
    models: dict[str, flaxbert.model.Model]
    app: object


def write_models(folder):
    """Writes a model of every task, by the name that it is served under."""
    entities = BASE.replace(num_labels=3, labels=("O", "B-film", "I-film"))
    verdicts = BASE.replace(num_labels=3, labels=("entailment", "neutral", "contradiction"))
    plain = BASE.replace(num_labels=2, labels=())
    made = {
        "vectors": write_tiny(folder / "vectors", "sentence-similarity", plain),
        "film": write_tiny(folder / "film", "sequence-classification", BASE),
        "nli": write_tiny(folder / "nli", "sequence-classification", verdicts),
        "ranker": write_tiny(folder / "ranker", "sequence-classification", BASE.replace(num_labels=1, labels=())),
        "tagger": write_tiny(folder / "tagger", "token-classification", entities),
        "reader": write_tiny(folder / "reader", "question-answering", plain),
        "words": write_tiny(folder / "words", "fill-mask", plain),
    }
    model = flaxbert.load(made["vectors"])
    prompts = {"query": "the film "}
    pooling = SentencePooling(("mean",), normalize=True, prompts=prompts, include_prompt=False)
    made["vectors"] = model.replace(pooling=pooling).save(folder / "pooled" / "vectors")
    return made


@pytest.fixture(scope="package")
def serving(tmp_path_factory) -> Iterator[Serving]:
    folders = write_models(tmp_path_factory.mktemp("served"))
    specs = parse_specs(tuple(f"{name}={folder}" for name, folder in folders.items()))
    app = make_app(specs, engine=SMALL, grpc_address=("127.0.0.1", 0))
    with running(app) as url:
        yield Serving(url, {name: flaxbert.load(folder) for name, folder in folders.items()}, app)


@pytest.fixture(scope="package")
def locked(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys").write_text(f"{KEY}\n")
    (folder / "keys").chmod(0o600)
    specs = parse_specs((str(write_tiny(folder / "film", config=BASE)),))
    with running(make_app(specs, engine=SMALL, access=AccessConfig(api_keys_file=str(folder / "keys")))) as url:
        yield url
