"""The fastest engine is measured, told, remembered for the same bytes, and computes what the model computes."""

import json
import shutil

import numpy as np
import pytest

import flaxbert
from flaxbert.errors import WeightsError
from flaxbert.evaluation import bulk
from flaxbert.export import choosing, fastest_model, in_engine, running
from tests.export.test_running import predict
from tests.serve.conftest import BASE
from tests.weights.tiny import write_tiny

TEXTS = ["a film", "the film was good", "good"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXBERT_COMPILATION_CACHE", str(tmp_path / "cache"))
    return write_tiny(tmp_path / "model", "sequence-classification", BASE)


def prefer(monkeypatch, best):
    monkeypatch.setattr(choosing, "measure", lambda opened: {name: [float(name != best)] for name in opened})


def test_a_table_has_the_fastest_first():
    seconds = {"jax": [0.001, 0.004], "onnxruntime": [0.002, 0.002]}
    lines = choosing.table(seconds, [(1, 16), (8, 32)], "onnxruntime")
    assert "8 x 32 tokens" in lines[0]
    assert lines[1].startswith("onnxruntime")
    assert lines[1].endswith("chosen")
    assert "4.0 ms" in lines[2]
    assert len({len(line.removesuffix("  chosen")) for line in lines}) == 1


def test_every_engine_is_timed_in_turn():
    calls = []
    seconds = choosing.measure({name: [lambda name=name: calls.append(name)] for name in ("one", "two")})
    assert list(seconds) == ["one", "two"]
    assert calls == ["one", "two"] * choosing._ROUNDS
    assert all(0.0 <= times[0] < 1.0 for times in seconds.values())


@pytest.mark.parametrize("best", ["jax", "openvino"])
def test_the_fastest_computes_what_the_model_computes_and_is_remembered(best, folder, monkeypatch):
    model = flaxbert.load(folder)
    lines = []
    prefer(monkeypatch, best)
    chosen = fastest_model(model, "abc", lines.append)
    assert (chosen.engine is None) == (best == "jax")
    assert any(line.startswith(best) and line.endswith("chosen") for line in lines)
    assert len(lines) == 1 + len(choosing.candidates())
    np.testing.assert_allclose(chosen.predict_logits(TEXTS), model.predict_logits(TEXTS), atol=1e-5)
    monkeypatch.setattr(choosing, "measure", lambda opened: pytest.fail("measured again"))
    lines.clear()
    assert (fastest_model(model, "abc", lines.append).engine is None) == (best == "jax")
    assert lines == [f"{best} was the fastest engine for this model before"]
    prefer(monkeypatch, "onnxruntime")
    assert fastest_model(model, "other bytes").engine is not None


@pytest.mark.parametrize("error", [WeightsError("It differs."), RuntimeError("It differs.")])
def test_an_engine_that_can_not_run_the_model_is_left_out(error, folder, monkeypatch, caplog):
    def refusing(model, name, digest):
        if name == "openvino":
            raise error
        return in_engine(model, name, digest)

    monkeypatch.setattr(choosing, "in_engine", refusing)
    prefer(monkeypatch, "openvino")
    lines = []
    fastest_model(flaxbert.load(folder), "", lines.append)
    assert "openvino can not run this model: It differs." in caplog.text
    assert not any(line.startswith("openvino") for line in lines)


def test_alone_jax_is_not_measured(folder, monkeypatch):
    monkeypatch.setattr(choosing, "candidates", lambda: ["jax"])
    monkeypatch.setattr(choosing, "signature_of", lambda model: pytest.fail("traced"))
    monkeypatch.setattr(choosing, "measure", lambda opened: pytest.fail("measured"))
    model = flaxbert.load(folder)
    assert fastest_model(model, "abc").engine is None
    assert fastest_model(in_engine(model, "onnxruntime"), "abc").engine is None


def test_an_interrupted_run_goes_on_with_its_engine(folder, tmp_path, monkeypatch, capsys):
    source, output = tmp_path / "texts.txt", tmp_path / "out.txt"
    source.write_text("\n".join(TEXTS * 4) + "\n", "utf-8")
    words = (str(folder), "--input", str(source), "--output", str(output), "--chunk_rows", "5", "--engine", "auto")
    prefer(monkeypatch, "onnxruntime")
    real, calls = bulk.predict_lines, []

    def interrupted(model, *arguments, **options):
        calls.append(model.engine.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, *arguments, **options)

    monkeypatch.setattr(bulk, "predict_lines", interrupted)
    assert predict(*words) == 130
    assert (tmp_path / ".out.txt.parts" / "00000000").is_file()
    shutil.rmtree(tmp_path / "cache")  # the choice is no longer remembered there
    prefer(monkeypatch, "openvino")
    assert predict(*words) == 0
    assert calls == ["onnxruntime"] * 4
    assert len(output.read_text("utf-8").splitlines()) == 12


def test_an_engine_that_fails_leaves_nothing_behind(folder, tmp_path, monkeypatch, capsys):
    source, output = tmp_path / "texts.txt", tmp_path / "out.txt"
    source.write_text("a film\n", "utf-8")
    words = (str(folder), "--input", str(source), "--output", str(output))

    def fail(*arguments):
        raise WeightsError("It differs.")

    with monkeypatch.context() as patch:
        patch.setattr(running, "open_exported", fail)
        assert predict(*words, "--engine", "openvino") == 1
    assert "It differs." in capsys.readouterr().err
    assert not list(tmp_path.glob(".out*"))
    assert predict(*words) == 0  # without the option, as the message says
    assert output.is_file()


def test_the_command_says_what_was_measured_and_predicts(folder, capsys, monkeypatch):
    prefer(monkeypatch, "onnxruntime")
    words = [str(folder), "--text", json.dumps(TEXTS), "--format", "jsonl"]
    assert predict(*words) == 0
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert predict(*words, "--engine", "auto") == 0
    shown = capsys.readouterr()
    assert "chosen" in shown.err
    found = [json.loads(line) for line in shown.out.splitlines()]
    assert [line["label"] for line in found] == [line["label"] for line in expected]
    assert [line["score"] for line in found] == pytest.approx([line["score"] for line in expected], abs=1e-5)
