"""What ``flaxbert verify`` finds in good and damaged folders."""

import numpy as np
import pytest

from flaxbert.cli.main import main
from flaxbert.errors import WeightsError
from flaxbert.evaluation import reference
from flaxbert.evaluation.verify import verify_folder
from flaxbert.families import FAMILIES
from flaxbert.weights.save import save_checkpoint
from tests.helpers import DIFFERENT_FAMILIES, slow_unless
from tests.nn.models import small_config, small_params
from tests.weights.tiny import change_tensors, write_tiny

torch = pytest.importorskip("torch", reason="needs the test extra")


@pytest.mark.parity
@pytest.mark.parametrize("family", slow_unless(DIFFERENT_FAMILIES.__contains__, FAMILIES))
def test_every_layer_of_every_family_passes(family, tmp_path):
    config = small_config(family, "token-classification")
    params = {**small_params(config, "token-classification")}
    folder = save_checkpoint(tmp_path / "model", config=config, task="token-classification", params=params)
    found = verify_folder(folder, length=10)
    assert found.passed, found.to_text()
    names = [difference.name for difference in found.differences]
    assert names == [f"layer {index}" for index in range(config.num_hidden_layers + 1)] + ["logits"]
    assert "PASS" in found.to_text()


def test_a_wrong_number_is_found(tmp_path, monkeypatch):
    folder = write_tiny(tmp_path / "model")
    load = reference.load_reference

    def other(loaded, path):
        model, problems = load(loaded, path)
        with torch.no_grad():
            model.bert.encoder.layer[1].output.dense.weight[0, 0] += 0.01
        return model, problems

    monkeypatch.setattr("flaxbert.evaluation.verify.load_reference", other)
    found = verify_folder(folder)
    passed = {difference.name: difference.passed for difference in found.differences}
    assert passed["layer 1"]
    assert not passed["layer 2"]
    assert not passed["logits"]
    assert not found.passed
    assert "FAIL  layer 2" in found.to_text()


def test_values_that_are_not_finite_and_changed_files_fail(tmp_path):
    folder = write_tiny(tmp_path / "model")

    def damage(tensors):
        tensors["classifier.bias"] = np.array([np.nan, 0.0, np.inf], np.float32)

    change_tensors(folder, damage)
    with pytest.warns(UserWarning, match="not finite"):
        found = verify_folder(folder)
    assert not found.passed
    assert any(problem.startswith("'classifier.bias' (") and "not finite" in problem for problem in found.problems)
    assert any("differs from what was written" in problem for problem in found.problems)


def test_without_torch_the_tensors_are_still_accounted_for(tmp_path, monkeypatch):
    folder = write_tiny(tmp_path / "model")
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: None)
    found = verify_folder(folder)
    assert found.passed
    assert found.differences == ()
    assert "torch is not installed" in found.to_text()


def test_heads_of_their_own_are_said_not_to_be_compared(tmp_path):
    config = small_config("bert", "late-interaction")
    params = small_params(config, "late-interaction")
    folder = save_checkpoint(tmp_path / "model", config=config, task="late-interaction", params=params)
    assert "transformers has no class HF_ColBERT" in verify_folder(folder).reference


def test_the_command_says_pass_or_fail_by_its_exit_code(tmp_path, capsys):
    folder = write_tiny(tmp_path / "model")
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("PASS")
    (folder / "vocab.txt").write_text("\n".join(f"word{index}" for index in range(100)), "utf-8")
    assert main(["verify", str(folder)]) == 1
    assert "Tokenizer and weights are not of one model" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "none")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_a_folder_that_can_not_be_loaded_is_an_error(tmp_path):
    folder = write_tiny(tmp_path / "model")
    change_tensors(folder, lambda tensors: {name: t for name, t in tensors.items() if "layer.1" not in name})
    with pytest.raises(WeightsError, match="lack"):
        verify_folder(folder)
