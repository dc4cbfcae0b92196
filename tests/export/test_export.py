"""``flaxbert export``: folders of every format, compared at once; nothing is left where they differ."""

import json
import sys

import numpy as np
import pytest

from flaxbert.cli.main import main
from flaxbert.errors import ConfigError, DependencyError, WeightsError
from flaxbert.export import ExportOptions, engines, export_model, verify
from flaxbert.export.export import FORMATS, prepare
from flaxbert.export.signature import signature_of
from flaxbert.export.stablehlo import StableHloProgram
from flaxbert.model import load
from flaxbert.transforms import QuantizationSpec, default_quantization_rules, quantize
from tests.export.models import batches, inputs_of, quantized, small_model, wide_model
from tests.helpers import run_python
from tests.weights.tiny import write_tiny

CLOSE = 1e-5
"""Relative: the same float32 numbers, added up in another order."""

WITHOUT_FLAXBERT = """
import json, sys
import numpy as np
from jax import export
from safetensors.numpy import load_file
sys.modules["flaxbert"] = None
folder = sys.argv[1]
program = export.deserialize(bytearray(open(folder + "/model.stablehlo", "rb").read()))
parameters = load_file(folder + "/parameters.safetensors")
names = json.load(open(folder + "/signature.json"))
batch = np.load(sys.argv[2])
for number in range(2):
    outputs = program.call(parameters, *(batch[f"{name}{number}"] for name in names["inputs"]))
    np.save(f"{sys.argv[3]}{number}.npy", np.asarray(outputs[0]))
"""


@pytest.fixture(autouse=True)
def _few_shapes(monkeypatch):
    """Every shape that is compared is compiled."""
    monkeypatch.setattr(verify, "SHAPES", ((2, 11),))
    monkeypatch.setattr(verify, "LONGEST", 11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("a fine film\nthe film was bad .\na bad film\nthe films\n", "utf-8")
    return str(file)


def test_the_command_writes_a_folder_and_prints_the_differences(folder, tmp_path, capsys):
    output = tmp_path / "onnx"
    assert main(["export", folder, str(output)]) == 0
    text = capsys.readouterr().out
    assert "Compared with flaxbert" in text
    assert "logits" in text
    assert "model.onnx" in text
    names = {file.name for file in output.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "flaxbert_manifest.json"} <= names
    assert json.loads((output / "config.json").read_text())["id2label"]["2"] == "good"
    model = load(folder)
    engine = engines.open_onnxruntime(output / "model.onnx")
    tokens = model.tokenizer(["a fine film", "bad"], padding=True, return_tensors="np")
    probabilities = np.exp(engine(tokens)["logits"])
    expected = [prediction.label for prediction in model.predict(["a fine film", "bad"])]
    assert [model.config.labels[row.argmax()] for row in probabilities] == expected


def test_static_int8_from_the_command_line(folder, texts, tmp_path, capsys):
    output = tmp_path / "int8"
    words = ["--int8", "static", "--calibration", texts, "--reduced_range", "true", "--tolerance", "0.5"]
    assert main(["export", folder, str(output), *words]) == 0
    assert "quantized to int8 first" in capsys.readouterr().out
    assert main(["export", folder, str(tmp_path / "other"), "--int8", "static"]) == 1
    assert "--calibration FILE" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "tflite"], "tflite"),
        (["--int8", "static", "--format", "stablehlo"], "onnx and openvino"),
        (["--tolerance", "-1"], "must not be negative"),
    ],
)
def test_wrong_options_are_refused(folder, tmp_path, capsys, words, message):
    assert main(["export", folder, str(tmp_path / "new"), *words]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_exists_is_refused(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["export", folder, str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(WeightsError):
        export_model(small_model(), tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("name", "value"), [("format", "onnxx"), ("int8", "statik")])
def test_unknown_choices_name_the_nearest(name, value):
    with pytest.raises(ConfigError, match=f"Unknown {name} '{value}'.*Did you mean|Unknown {name} '{value}'"):
        ExportOptions(**{name: value})


@pytest.mark.parametrize(("package", "format"), [("onnx", "onnx"), ("openvino", "openvino")])
def test_a_missing_extra_is_named_before_any_work(monkeypatch, tmp_path, package, format):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=rf"pip install 'flaxbert\[{package}\]'"):
        export_model(small_model(), tmp_path / "new", ExportOptions(format=format))
    assert not (tmp_path / "new").exists()


def test_without_onnx_runtime_the_folder_is_written_and_said_to_be_unchecked(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = export_model(small_model(), tmp_path / "new")
    assert result.comparisons == ()
    assert "Not compared" in result.notices[0]
    assert (tmp_path / "new" / "model.onnx").is_file()


def test_a_folder_that_differs_is_not_kept(monkeypatch, tmp_path):
    good = engines.open_onnxruntime

    def wrong(file, **options):
        engine = good(file, **options)
        return lambda batch: {name: array * 1.01 for name, array in engine(batch).items()}

    monkeypatch.setattr(engines, "open_onnxruntime", wrong)
    with pytest.raises(WeightsError, match=r"(?s)relative difference of 'logits' is 0\.01.*Nothing was kept.*largest"):
        export_model(small_model(), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_not_finite_are_refused():
    signature = signature_of(small_model())
    broken = lambda batch: {"logits": np.full((*batch["input_ids"].shape, 3), np.nan, np.float32)}
    found = verify.compare(broken, signature, [inputs_of(batches(small_model())[0], signature)])
    with pytest.raises(WeightsError, match="inf"):
        verify.refuse_above(found, 1.0, is_int8=True)
    other = lambda batch: {"logits": np.zeros((1, 2), np.float32)}
    with pytest.raises(WeightsError, match="has shape"):
        verify.compare(other, signature, [inputs_of(batches(small_model())[0], signature)])


def test_leaves_that_are_written_out_are_said(folder):
    model = quantized(wide_model())
    assert "written out in float32" in prepare(model, ExportOptions(int8="off"))[1][0]
    assert prepare(model, ExportOptions())[1] == []


def test_other_codes_are_no_int8(tmp_path):
    rules = default_quantization_rules(QuantizationSpec(4, 8))
    model = wide_model().replace(params=quantize(wide_model().params, rules)[0])
    with pytest.raises(ConfigError, match="products in int8, but the leaves of the model are grouped"):
        export_model(model, tmp_path / "new", ExportOptions(int8="dynamic"))
    assert not (tmp_path / "new").exists()


def test_int8_programs_do_not_hang_on_the_processor_that_wrote_them(monkeypatch, tmp_path):
    from flaxbert.core import integer_dot

    monkeypatch.setattr(integer_dot, "has_mixed_products", lambda: True)
    options = ExportOptions(format="stablehlo", verify=False)
    export_model(quantized(wide_model()), tmp_path / "new", options)
    program = StableHloProgram(tmp_path / "new").program
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert "ui8" not in program.mlir_module()


def test_openvino_reads_what_was_written(tmp_path):
    model = small_model("bert", "sequence-classification")
    result = export_model(model, tmp_path / "new", ExportOptions(format="openvino"))
    assert {"openvino_model.xml", "openvino_model.bin"} <= set(result.files)
    assert max(entry.relative for entry in result.comparisons) < CLOSE


@pytest.mark.parametrize("quantize_attention", [False, True])
def test_openvino_computes_static_int8_with_fused_attention(tmp_path, quantize_attention):
    openvino = engines.require("openvino", "The test")
    model = quantized(wide_model())
    options = ExportOptions(
        format="openvino",
        int8="static",
        reduced_range=True,
        tolerance=0.5,
        quantize_attention=quantize_attention,
    )
    ranges = static_ranges(prepare(model, options)[0])
    export_model(model, tmp_path / "new", options, ranges=ranges)
    compiled = openvino.Core().compile_model(str(tmp_path / "new" / "openvino_model.xml"), "CPU")
    kinds = [
        (operation.get_rt_info()["layerType"].astype(str), operation.get_rt_info()["runtimePrecision"].astype(str))
        for operation in compiled.get_runtime_model().get_ordered_ops()
    ]
    layers = model.config.num_hidden_layers
    assert kinds.count(("FullyConnected", "u8")) == 6 * layers + 1
    assert not [kind for kind, _ in kinds if kind == "Softmax"], "softmax is part of the fused attention"
    fused = {precision for kind, precision in kinds if kind == "Subgraph"}
    assert (fused == {"i8"}) == quantize_attention


def static_ranges(model):
    from flaxbert.export.calibration import measure_ranges

    signature = signature_of(model)
    return measure_ranges(signature, [inputs_of(batch, signature) for batch in batches(model)])


@pytest.mark.parametrize("is_int8", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_stablehlo_is_called_without_flaxbert(tmp_path, is_int8):
    model = quantized(wide_model()) if is_int8 else small_model("bert", "sequence-classification")
    result = export_model(model, tmp_path / "new", ExportOptions(format="stablehlo"))
    assert max(entry.relative for entry in result.comparisons) < CLOSE
    signature = signature_of(model)
    inputs = [inputs_of(batch, signature) for batch in batches(model)[:2]]
    arrays = {f"{name}{n}": batch[name].astype(np.int32) for n, batch in enumerate(inputs) for name in batch}
    np.savez(tmp_path / "batch.npz", **arrays)
    words = [str(tmp_path / "new"), str(tmp_path / "batch.npz"), str(tmp_path / "out")]
    done = run_python(["-c", WITHOUT_FLAXBERT, *words], folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for number, batch in enumerate(inputs):
        expected = np.asarray(model.apply(model.params, batch).logits)
        np.testing.assert_allclose(
            np.load(tmp_path / f"out{number}.npy"), expected, atol=CLOSE * np.abs(expected).max()
        )


def test_stock_transformers_load_the_dense_folder(tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    model = quantized(small_model("bert", "sequence-classification"))
    result = export_model(model, tmp_path / "new", ExportOptions(format="hf"))
    assert "typed leaves are written out" in result.notices[0]
    assert result.notices[1].endswith("PASS")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "new").eval()
    batch = batches(model)[0]
    with torch.no_grad():
        theirs = stock(**{name: torch.as_tensor(np.asarray(array, np.int64)) for name, array in batch.items()}).logits
    dense = prepare(model, ExportOptions(format="hf"))[0]
    np.testing.assert_allclose(theirs.numpy(), np.asarray(dense.apply(dense.params, batch).logits), atol=1e-5)


def test_random_inputs_have_several_shapes_padding_and_the_longest(monkeypatch):
    monkeypatch.undo()
    found = verify.random_batches(signature_of(small_model("bert", "multiple-choice")))
    assert [batch["input_ids"].shape for batch in found] == [(1, 2, 4), (2, 2, 17), (3, 2, 48), (1, 2, 48)]
    assert all((batch["attention_mask"][0] == 1).all() for batch in found)
    assert (found[1]["attention_mask"][-1] == 0).any()


def test_every_format_has_a_test():
    assert set(FORMATS) == {"onnx", "openvino", "stablehlo", "hf"}
