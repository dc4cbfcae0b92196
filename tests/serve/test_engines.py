"""Every engine gives what JAX gives, for every function; programs are kept and read again; the fastest is chosen."""

import jax
import numpy as np
import pytest

import flaxbert
from flaxbert.config import BatchingConfig
from flaxbert.errors import ConfigError, ShapeError
from flaxbert.export import ExportResult, choosing, running
from flaxbert.serve.engines import choose
from flaxbert.serve.engines.exported_engine import ExportedEngine
from flaxbert.serve.engines.jax_engine import JaxEngine
from flaxbert.serve.engines.program_cache import ProgramCache
from flaxbert.serve.functions import functions_of
from flaxbert.serve.loading import plan_of
from flaxbert.serve.shapes import plan_shapes
from flaxbert.transforms import quantize
from flaxbert.weights.sentence_transformers import SentencePooling
from tests.helpers import slow_unless
from tests.serve.conftest import BASE
from tests.weights.tiny import write_tiny

PLAN = plan_shapes(16, 32, 2)
BOUND = 1e-4
"""Largest difference of float32 engines, of outputs of about 1."""

TASKS = {
    "sentence-similarity": {},
    "sequence-classification": {},
    "token-classification": {},
    "question-answering": {},
    "fill-mask": {},
    "weights of words": {"sparse": True},
}
CASES = [(engine, task) for engine in ("onnxruntime", "openvino") for task in TASKS]


def load(tmp_path, task, seed=0):
    task = "fill-mask" if task == "weights of words" else task
    labels = BASE.labels if "classification" in task else ()
    model = flaxbert.load(
        write_tiny(tmp_path / "model", task, BASE.replace(labels=labels, num_labels=3 if labels else 2))
    )
    if task == "sentence-similarity":
        model = model.replace(pooling=SentencePooling(("mean", "max")))
    return model


def random_batch(function, num_rows, length, seed=0):
    random = np.random.default_rng(seed)
    batch = function.example(num_rows, length)
    batch["input_ids"] = random.integers(5, 13, (num_rows, length)).astype(np.int32)
    for name in ("attention_mask", "pool_mask"):
        if name in batch:
            batch[name][-1, length // 2 :] = 0
    if "masked_positions" in batch:
        batch["masked_positions"] = random.integers(0, length // 2, batch["masked_positions"].shape).astype(np.int32)
    return batch


def compared(values, function, batch):
    """Returns what counts: of vectors of tokens not those of padding."""
    return values[:, : batch["input_ids"].shape[1] // 2] if function.keep_length else values


@pytest.mark.parametrize(
    ("name", "task"),
    slow_unless(lambda case: case in (CASES[0], CASES[7]), CASES, several=True),
)
def test_exported_engines_compute_what_jax_computes(name, task, tmp_path):
    model = load(tmp_path, task)
    functions = functions_of(model, **TASKS[task])
    ours, theirs = JaxEngine(model, functions, PLAN), ExportedEngine(name, model, functions, PLAN)
    for engine in (ours, theirs):
        engine.prepare(lambda done, total: None)
    for function in functions.values():
        batch = random_batch(function, 2, 16)
        expected, found = (compared(engine.run(function.name, batch), function, batch) for engine in (ours, theirs))
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found, expected, atol=BOUND * scale)


def test_an_int8_model_is_exported_in_int8(tmp_path):
    model = load(tmp_path, "sequence-classification")
    model = model.replace(params=quantize(model.params)[0])
    functions = functions_of(model)
    engine = ExportedEngine("onnxruntime", model, functions, PLAN)
    engine.prepare(lambda done, total: None)
    batch = random_batch(functions["logits"], 2, 16)
    expected = JaxEngine(model, functions, PLAN)
    expected.prepare(lambda done, total: None)
    expected = expected.run("logits", batch)
    assert np.sqrt(np.mean(np.square(engine.run("logits", batch) - expected))) < 0.2 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("has_units", [False, True])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_openvino_computes_in_bfloat16_where_that_costs_nothing(tmp_path, monkeypatch, caplog, kind, has_units):
    model = load(tmp_path, "sequence-classification")
    if kind == "int8":
        model = model.replace(params=quantize(model.params)[0])
    elif kind == "bfloat16":
        model = model.with_execution(precision="bfloat16")
    asked = []
    monkeypatch.setattr(running, "multiplies_bfloat16", lambda: has_units)

    def open_openvino(file, *, precision):
        asked.append(precision)
        return lambda batch: {}

    monkeypatch.setattr(running.engines, "open_openvino", open_openvino)
    monkeypatch.setattr(running, "export_model", lambda model, folder, options: ExportResult((), (), ("a notice",)))
    running.open_exported("openvino", model)
    assert [record.message for record in caplog.records if record.name == "flaxbert.export"] == ["a notice"]
    assert asked == ["bf16" if has_units and kind != "float32" else "f32"]


def test_exports_are_kept_and_damaged_ones_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXBERT_COMPILATION_CACHE", str(tmp_path / "cache"))
    model = load(tmp_path, "sequence-classification")
    functions = functions_of(model)
    batch = random_batch(functions["logits"], 1, 16)

    def open_one():
        engine = ExportedEngine("onnxruntime", model, functions, PLAN, digest="abc")
        engine.prepare(lambda done, total: None)
        return engine.run("logits", batch)

    first = open_one()
    (kept,) = (tmp_path / "cache" / "served-exports").iterdir()
    stamp = (kept / "model.onnx").stat().st_mtime_ns
    np.testing.assert_array_equal(open_one(), first)
    assert (kept / "model.onnx").stat().st_mtime_ns == stamp
    (kept / "model.onnx").write_bytes(b"nothing")
    np.testing.assert_array_equal(open_one(), first)
    assert (kept / "model.onnx").stat().st_size > 1000


def test_jax_runs_no_shape_that_was_not_compiled(tmp_path):
    model = load(tmp_path, "sequence-classification")
    functions = functions_of(model)
    engine = JaxEngine(model, functions, PLAN)
    told = []
    engine.prepare(lambda done, total: told.append((done, total)))
    assert told[0] == (0, len(PLAN.shapes()))
    assert told[-1] == (len(PLAN.shapes()),) * 2
    with pytest.raises(ShapeError, match=r"\[3, 16\]"):
        engine.run("logits", functions["logits"].example(3, 16))


def test_programs_are_kept_by_what_they_compute(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXBERT_COMPILATION_CACHE", str(tmp_path / "cache"))
    params = {"kernel": np.ones((2, 3), np.float32)}
    batch = {"input_ids": np.ones((1, 2), np.int32)}
    program = jax.jit(lambda p, b: b["input_ids"].astype(np.float32) @ p["kernel"]).lower(params, batch).compile()
    cache = ProgramCache("model", params)
    assert cache.read("one", params, batch) is None
    cache.write("one", program, params, batch)
    assert ProgramCache("model", params).read("one", params, batch) is program
    expected = np.asarray(program(params, batch))
    del program  # and nobody has it any more
    read = ProgramCache("model", params).read("one", params, batch)
    np.testing.assert_array_equal(read(params, batch), expected)
    del read
    assert ProgramCache("model", params).read("two", params, batch) is None
    assert ProgramCache("other model", params).read("one", params, batch) is None
    assert ProgramCache("model", {"kernel": np.ones((2, 4), np.float32)}).read("one", params, batch) is None
    (file,) = (tmp_path / "cache" / "served-programs").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert cache.read("one", params, batch) is None
    monkeypatch.setattr("flaxbert.serve.engines.program_cache.MOST_FILES", 0)
    cache.prune()
    assert not list((tmp_path / "cache" / "served-programs").iterdir())


def test_an_engine_that_is_chosen_answers(tmp_path, caplog):
    model = load(tmp_path, "sequence-classification")
    functions = functions_of(model)
    with caplog.at_level("INFO", "flaxbert.serve"):
        engine = choose.open_engine("auto", model, functions, PLAN)
    engine.prepare(lambda done, total: None)
    assert engine.run("logits", functions["logits"].example(1, 16)).shape == (1, 3)
    assert "chosen" in caplog.text
    with pytest.raises(ConfigError, match="onnxruntime"):
        choose.open_engine("onnxruntim", model, functions, PLAN)


def test_shapes_follow_what_is_asked_for(tmp_path):
    plan = plan_of(BASE, 32, BatchingConfig(max_length=20, max_batch_tokens=100, max_batch_requests=8))
    assert plan.lengths == (16, 20)
    assert plan.rows == (1, 4)
    assert plan_of(BASE, 32, BatchingConfig()).lengths[-1] == 32


def test_the_choice_is_remembered_for_the_same_bytes(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FLAXBERT_COMPILATION_CACHE", str(tmp_path / "cache"))
    model = load(tmp_path, "sequence-classification")
    functions = functions_of(model)
    monkeypatch.setattr(choosing, "measure", lambda opened: {name: [-len(name)] for name in opened})
    with caplog.at_level("INFO", "flaxbert.serve"):
        assert choose.open_engine("auto", model, functions, PLAN, "abc").name == "onnxruntime"
        caplog.clear()
        monkeypatch.setattr(choosing, "measure", lambda opened: pytest.fail("measured again"))
        assert choose.open_engine("auto", model, functions, PLAN, "abc").name == "onnxruntime"
    assert "before" in caplog.text
