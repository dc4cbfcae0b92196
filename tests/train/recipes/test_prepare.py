"""Raw text to a corpus: the same for any number of workers, copies left out, folders protected."""

import json

import numpy as np
import pytest

from flaxbert.config import CorpusConfig, DedupConfig, PrepareConfig
from flaxbert.data import inputs as inputs_module
from flaxbert.data import preparation
from flaxbert.data.corpus import Document
from flaxbert.data.inputs import expand_inputs
from flaxbert.data.preparation import DocumentTokenizer, ShardJob, load_segmenter, split_document
from flaxbert.data.prepared import PreparedCorpus, TokenizedDocument
from flaxbert.errors import CheckpointError, ConfigError, DataError
from flaxbert.train.folder_lock import FolderLock
from flaxbert.train.recipes.prepare import prepare_corpus
from tests.weights.tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for book in range(3):
        lines = [f"The film was fine. A {'very ' * (place + book)}fine film!\n\n" for place in range(20)]
        (folder / f"{book}.txt").write_text("".join(lines))
    return folder


def run(tmp_path, model, texts, name="corpus", dedup=None, corpus=None, **options):
    lines = []
    config = PrepareConfig(folder=str(tmp_path / name), tokenizer=str(model), **options)
    corpus = corpus or CorpusConfig(inputs=(str(texts),))
    return prepare_corpus(config, corpus, dedup or DedupConfig(), say=lines.append), lines


def contents(corpus):
    return [corpus.document(number).input_ids.tolist() for number in range(len(corpus))]


@pytest.mark.parametrize("num_shards", [pytest.param(number, marks=pytest.mark.slow) for number in (2, 5)])
def test_workers_change_nothing(num_shards, tmp_path, model, texts):
    alone, lines = run(tmp_path, model, texts, "one", num_shards=num_shards, num_workers=1)
    many, _ = run(tmp_path, model, texts, "two", num_shards=num_shards, num_workers=2)
    assert len(alone) == 60
    assert "60 documents" in lines[-1]
    assert alone.digest == many.digest
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert names[0] == ".lock"
    assert not any("partial" in name for name in names)


@pytest.mark.parametrize(("num_shards", "workers", "times"), [(3, 4, 1), (8, 1, 1), (8, 3, 3)])
def test_inputs_are_read_once_or_once_a_worker(num_shards, workers, times, texts, monkeypatch):
    read = []
    real = preparation.read_documents
    monkeypatch.setattr(preparation, "read_documents", lambda part, config: read.append(part) or real(part, config))
    corpus = CorpusConfig(inputs=(str(texts),))
    parts = tuple(expand_inputs(corpus))
    job = ShardJob(
        parts, corpus, "", "", 100, num_shards, tuple(range(num_shards)), dropped=frozenset({(2, 5), (0, 1)})
    )
    jobs = job.split(workers)
    assert [number for part in jobs for number in part.numbers] == list(job.numbers)
    places = [place for part in jobs for place, _ in part.documents()]
    assert sorted(places) == [(book, index) for book in range(3) for index in range(20)]
    assert read.count(parts[0]) == times
    for part in jobs:
        assert all(job.shard_of(place) in part.numbers for place in part.dropped)
    assert frozenset().union(*(part.dropped for part in jobs)) == job.dropped


def test_parts_of_large_files_change_no_document(tmp_path, model, texts, monkeypatch):
    whole, _ = run(tmp_path, model, texts, "whole", num_shards=2, num_workers=1)
    monkeypatch.setattr(inputs_module, "_LEAST_PART_BYTES", 100)
    cut, _ = run(tmp_path, model, texts, "cut", num_shards=2, num_workers=1, dedup=DedupConfig(exact=True))
    kept, _ = run(tmp_path, model, texts, "kept", num_shards=2, num_workers=1)
    assert sorted(contents(kept)) == sorted(contents(whole))
    assert len(cut) == len({tuple(row) for row in contents(whole)})


def test_documents_keep_sentences_and_tokens(tmp_path, model, texts):
    from transformers import AutoTokenizer

    corpus, _ = run(tmp_path, model, texts, num_shards=1, num_workers=1)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "corpus" / "tokenizer"))
    first = corpus.document(0)
    assert tokenizer.convert_ids_to_tokens(first.input_ids.tolist())[:4] == ["the", "film", "was", "fine"]
    whole = tokenizer("The film was fine. A fine film!", add_special_tokens=False)["input_ids"]
    assert first.input_ids.tolist() == whole
    assert len(first.sentence_ends) == 2
    assert first.sentence_ends[-1] == len(whole)
    assert corpus.made_from["corpus"]["document"] == "blank_line"


def test_long_documents_are_stored_in_parts():
    ids = np.arange(100, dtype=np.int32)
    document = TokenizedDocument(ids, np.array([30, 35, 90, 100]), ids % 2 == 0)
    parts = list(split_document(document, 40))
    assert [len(part.input_ids) for part in parts] == [35, 40, 25]
    assert np.concatenate([part.input_ids for part in parts]).tolist() == ids.tolist()
    assert [part.sentence_ends.tolist() for part in parts] == [[30, 35], [40], [15, 25]]
    assert parts[1].word_starts.tolist() == (ids[35:75] % 2 == 0).tolist()
    assert list(split_document(document, 100)) == [document]


def test_copies_are_left_out(tmp_path, model, texts):
    (texts / "3.txt").write_text((texts / "0.txt").read_text())
    corpus, lines = run(tmp_path, model, texts, dedup=DedupConfig(exact=True), num_shards=2, num_workers=1)
    everything, _ = run(tmp_path, model, texts, "all", num_shards=2, num_workers=1)
    assert len(everything) == 80
    different = {tuple(row) for row in contents(everything)}
    assert len(corpus) == len(different) == len({tuple(row) for row in contents(corpus)})
    assert f"of 80 (left out: {80 - len(corpus)} exact and 0 near copies)" in lines[-1]


def test_folders_are_protected(tmp_path, model, texts):
    run(tmp_path, model, texts, num_workers=1, num_shards=1)
    with pytest.raises(ConfigError, match=r"holds a corpus; .*prepare\.overwrite"):
        run(tmp_path, model, texts, num_workers=1)
    again, _ = run(tmp_path, model, texts, num_workers=1, num_shards=2, overwrite=True)
    assert len(again) == 60
    assert len(list((tmp_path / "corpus").glob("documents-*"))) == 2
    (texts / "broken.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="broken"):
        run(tmp_path, model, texts, num_workers=1, overwrite=True)
    (texts / "broken.txt").unlink()
    kept = PreparedCorpus(tmp_path / "corpus")
    assert contents(kept) == contents(again), "what can not be replaced stays"
    assert not (tmp_path / "corpus" / ".new").exists()
    (tmp_path / "corpus" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds thesis\.txt"):
        run(tmp_path, model, texts, num_workers=1, overwrite=True)
    lock = FolderLock(tmp_path / "corpus")
    try:
        with pytest.raises(CheckpointError, match="open for writing"):
            run(tmp_path, model, texts, num_workers=1)
    finally:
        lock.release()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failed_run_leaves_no_corpus(workers, tmp_path, model, texts):
    (texts / "9.txt").write_bytes(b"\xff\xfe no text")
    for _ in range(2):
        with pytest.raises(DataError, match=r"9\.txt"):
            run(tmp_path, model, texts, num_workers=workers, num_shards=2)
        with pytest.raises(DataError, match="is no prepared corpus"):
            PreparedCorpus(tmp_path / "corpus")
    (texts / "9.txt").unlink()
    assert len(run(tmp_path, model, texts, num_workers=1)[0]) == 60


def test_empty_text_and_missing_tokenizer(tmp_path, model, texts):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"The corpus is empty: 1 inputs hold no text, the first of them .*empty\.txt"):
        run(tmp_path, model, texts, corpus=CorpusConfig(inputs=(str(tmp_path / "empty.txt"),)), num_workers=1)
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        run(tmp_path, tmp_path, texts)
    with pytest.raises(ConfigError, match=r"prepare\.tokenizer is empty"):
        prepare_corpus(PrepareConfig(), CorpusConfig(inputs=(str(texts),)), DedupConfig())


def test_marks_in_a_text_stay_text(model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    (document,) = DocumentTokenizer(tokenizer)([Document(("a [MASK] film [SEP]",), "row 1")])
    assert not set(document.input_ids.tolist()) & {tokenizer.mask_token_id, tokenizer.sep_token_id}


def test_blanks_between_sentences_of_byte_pairs():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["<unk>", "a", "b", ".", "Ġ", "Ġa", "Ġb"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("Ġ", "b")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    (document,) = DocumentTokenizer(tokenizer)([Document(("a b.", "b a."), "row 1")])
    assert document.input_ids.tolist() == tokenizer("a b. b a.")["input_ids"]


def cut_in_pairs(text):
    return [text[start : start + 2] for start in range(0, len(text), 2)]


def test_a_segmenter_says_what_words_are(tmp_path, model, texts):
    path = tmp_path / "pairs.txt"
    path.write_text("the film was fine")
    name = "tests.train.recipes.test_prepare:cut_in_pairs"
    corpus, _ = run(
        tmp_path, model, texts, corpus=CorpusConfig(inputs=(str(path),)), num_workers=1, num_shards=1, segmenter=name
    )
    assert corpus.document(0).word_starts.tolist() == [True] * 4
    with pytest.raises(ConfigError, match=r"must be module:function"):
        load_segmenter("jieba_that_is_not_there:cut")
    with pytest.raises(ConfigError, match="is no function"):
        load_segmenter("os:sep")


def test_record_of_what_it_was_made_from(tmp_path, model, texts):
    run(tmp_path, model, texts, num_workers=1)
    written = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    assert written["num_documents"] == 60
    assert written["made_from"]["inputs"] == [part.source for part in expand_inputs(CorpusConfig(inputs=(str(texts),)))]
    assert np.sum([shard["num_tokens"] for shard in written["shards"]]) == written["num_tokens"]
