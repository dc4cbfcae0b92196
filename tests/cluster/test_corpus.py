"""Preparation by the workers of a cluster gives the files of one machine; Ray Data is stood in for."""

import pytest

from flaxbert.cluster import corpus as cluster_corpus
from flaxbert.cluster.corpus import RayEngine
from flaxbert.cluster.plan import LaunchPlan
from flaxbert.config import ClusterConfig, CorpusConfig, DedupConfig, PrepareConfig
from flaxbert.errors import ClusterError, DataError
from flaxbert.train.recipes.prepare import prepare_corpus
from tests.cluster.in_process import spread
from tests.cluster.texts import files_of, write_texts
from tests.weights.tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model")


def run(folder, model, texts, *, engine=None, dedup=DedupConfig(), **options):
    config = PrepareConfig(folder=str(folder), tokenizer=str(model), **options)
    lines = []
    prepare_corpus(config, CorpusConfig(inputs=(str(texts),)), dedup, say=lines.append, engine=engine)
    return lines


def engine_in(folder, config=None):
    options = {"prepare": config or PrepareConfig(), "dedup": DedupConfig()}
    return RayEngine(LaunchPlan(ClusterConfig(num_workers=2, folder=str(folder)), ("prepare",), options))


@pytest.mark.parametrize("num_shards", [2, 5], ids=["whole inputs", "single documents"])
@pytest.mark.parametrize("dedup", [DedupConfig(), DedupConfig(exact=True, near=True)], ids=["all", "no copies"])
def test_many_machines_write_what_one_writes(num_shards, dedup, tmp_path, model, monkeypatch):
    monkeypatch.setattr(cluster_corpus, "spread", spread)
    monkeypatch.chdir(tmp_path)
    texts = write_texts(tmp_path / "texts")
    options = {"dedup": dedup, "num_shards": num_shards}
    alone = run(tmp_path / "one", model, texts, num_workers=1, **options)
    many = run(tmp_path / "many", model, texts, engine=engine_in(tmp_path), **options)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "many")
    assert len(files_of(tmp_path / "one")) > 2 * num_shards
    assert [line.replace("one", "many") for line in alone[:-1]] == many[:-1]
    assert ("left out" in many[-1]) is dedup.near
    assert "left out: 0 exact and 0 near" not in many[-1]


def test_an_error_of_a_worker_is_the_users_error(tmp_path, model, monkeypatch):
    monkeypatch.setattr(cluster_corpus, "spread", spread)
    monkeypatch.chdir(tmp_path)
    texts = write_texts(tmp_path / "texts")
    (texts / "9.txt").write_bytes(b"\xff\xfe no text")
    with pytest.raises(DataError, match=r"9\.txt"):
        run(tmp_path / "many", model, texts, engine=engine_in(tmp_path), num_shards=2)


def test_a_folder_that_nodes_do_not_share_is_named(tmp_path, model, monkeypatch):
    def elsewhere(rows, worker, arguments, config):
        for number, arrays in spread(rows, worker, arguments, config):
            for file in (tmp_path / "many").rglob("documents-*"):
                file.unlink()
            yield number, arrays

    monkeypatch.setattr(cluster_corpus, "spread", elsewhere)
    monkeypatch.chdir(tmp_path)
    texts = write_texts(tmp_path / "texts")
    with pytest.raises(ClusterError, match=r"was written on node .*, but is not there on this one; prepare\.folder"):
        run(tmp_path / "many", model, texts, engine=engine_in(tmp_path), num_shards=1)
