"""Large files: the same predictions as in one piece, some rows at a time, going on where a run was interrupted."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flaxbert
from flaxbert.cli.main import main
from flaxbert.config import DataConfig
from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation import bulk
from flaxbert.evaluation.bulk import Bulk
from tests.helpers import ROOT
from tests.weights.tiny import write_tiny

TEXTS = [f"{'bad ' * (number % 3)}film {'the ' * (number % 2)}fine ." for number in range(23)]
OPTIONS = {"format": "jsonl", "batch_size": 4, "max_length": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "film")


def write_table(path, texts):
    """Writes texts as a file of the format that its name tells."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": texts, "other": list(range(len(texts)))}), path, row_group_size=5)
        return path
    if name.endswith((".csv", ".tsv")):
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="," if name.endswith(".csv") else "\t")
            writer.writerows([["other", "text"], *([str(n), text] for n, text in enumerate(texts))])
        return path
    lines = [json.dumps({"text": text}) if "jsonl" in name else text for text in texts]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def predict(folder, source, output, *words):
    return main(["predict", str(folder), "--input", str(source), "--output", str(output), "--format", "jsonl", *words])


def expected(folder):
    return flaxbert.load(folder).predict(TEXTS)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.tsv", "a.jsonl", "a.jsonl.gz", "a.txt", "a.txt.gz"])
def test_chunks_give_what_the_whole_file_gives(name, folder, tmp_path, capsys):
    source = write_table(tmp_path / name, TEXTS)
    assert predict(folder, source, tmp_path / "out.jsonl", "--chunk_rows", "7") == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    for line, prediction in zip(lines, expected(folder), strict=True):
        assert line["label"] == prediction.label
        assert line["score"] == pytest.approx(prediction.score, abs=1e-5)
    assert "23 rows" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_quoted_fields_may_hold_line_ends_at_the_edge_of_a_chunk(folder, tmp_path):
    texts = ['a "fine"\nfilm', "bad, bad", "the\n\nfilm"] * 5
    source = write_table(tmp_path / "a.csv", texts)
    assert predict(folder, source, tmp_path / "out.jsonl", "--chunk_rows", "4") == 0
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == texts


def test_the_output_can_be_parquet(folder, tmp_path):
    source = write_table(tmp_path / "a.parquet", TEXTS)
    assert predict(folder, source, tmp_path / "out.parquet", "--chunk_rows", "10") == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("text").to_pylist() == TEXTS
    assert table.column("label").to_pylist() == [p.label for p in expected(folder)]


def make(folder, source, output, **changes):
    config = DataConfig(text_column="text", label_column="")
    return Bulk(flaxbert.load(folder), str(source), str(output), config, {**OPTIONS, **changes}, chunk_rows=5)


def test_an_interrupted_run_goes_on_and_computes_nothing_twice(folder, tmp_path, monkeypatch):
    source, output = write_table(tmp_path / "a.parquet", TEXTS), tmp_path / "out.jsonl"
    real, calls = bulk.predict_lines, []

    def stop_at(number):
        def lines(model, examples, **options):
            calls.append(list(examples.texts))
            if len(calls) == number:
                raise KeyboardInterrupt
            return real(model, examples, **options)

        return lines

    monkeypatch.setattr(bulk, "predict_lines", stop_at(3))
    with pytest.raises(KeyboardInterrupt):
        make(folder, source, output).run(print)
    assert not output.exists()
    with pytest.raises(ConfigError, match="options"):
        make(folder, source, output, batch_size=5)
    calls.clear()
    monkeypatch.setattr(bulk, "predict_lines", stop_at(0))
    said = []
    assert make(folder, source, output).run(said.append) == 13
    assert said[0] == "Going on after 10 rows that are there."
    assert [text for part in calls for text in part] == TEXTS[10:]
    assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == TEXTS


def test_a_file_that_changed_is_another_run(folder, tmp_path):
    source, output = write_table(tmp_path / "a.jsonl", TEXTS), tmp_path / "out.jsonl"
    make(folder, source, output)
    write_table(source, TEXTS[:-1])
    with pytest.raises(ConfigError, match="source"):
        make(folder, source, output)


def test_a_malformed_row_is_named_and_what_was_done_stays(folder, tmp_path):
    source, output = write_table(tmp_path / "a.jsonl", TEXTS), tmp_path / "out.jsonl"
    lines = source.read_text().splitlines()
    lines[12] = '{"text": 3}'
    source.write_text("\n".join(lines) + "\n")
    run = make(folder, source, output)
    with pytest.raises(DataError, match=r"line 13"):
        run.run(print)
    assert run.num_done == 2
    assert not output.exists()


def test_what_can_not_be_cut_is_read_whole(tmp_path):
    tagger = flaxbert.load(write_tiny(tmp_path / "tagger", "token-classification"))
    table = write_table(tmp_path / "a.jsonl", TEXTS)
    assert not bulk.can_be_cut(tagger, str(table), DataConfig(label_column=""))
    assert bulk.can_be_cut(tagger, str(write_table(tmp_path / "a.txt", TEXTS)), DataConfig(label_column=""))
    with pytest.raises(ConfigError, match="chunk_rows"):
        Bulk(tagger, str(table), str(tmp_path / "out"), DataConfig(), OPTIONS, chunk_rows=0)


@pytest.mark.slow
def test_a_killed_process_goes_on(folder, tmp_path):
    texts = TEXTS * 400
    source, output = write_table(tmp_path / "a.parquet", texts), tmp_path / "out.jsonl"
    words = [sys.executable, "-m", "flaxbert", "predict", str(folder), "--input", str(source), "--output", str(output)]
    words += ["--format", "jsonl", "--chunk_rows", "100"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    kills = 0
    while not output.exists():
        process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
        if kills < 3:
            parts = tmp_path / ".out.jsonl.parts"
            before = len(list(parts.glob("0*"))) if parts.exists() else 0
            while process.poll() is None and (not parts.exists() or len(list(parts.glob("0*"))) < before + 5):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == texts


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(folder, tmp_path):
    import psutil

    small, large = (write_table(tmp_path / f"{n}.parquet", TEXTS * n) for n in (200, 4000))
    peaks = []
    for source in (small, large):
        words = [sys.executable, "-m", "flaxbert", "predict", str(folder), "--input", str(source), "--output"]
        words += [str(source.with_suffix(".jsonl")), "--format", "jsonl", "--chunk_rows", "1000"]
        process = psutil.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.02)
        assert process.wait() == 0
        peaks.append(peak)
    assert np.diff(peaks)[0] < 0.15 * peaks[0], peaks
