"""``flaxbert convert`` on folders of several kinds."""

import numpy as np
import pytest

import flaxbert
from flaxbert.cli.main import main
from flaxbert.core.trees import flatten_names
from tests.weights.tiny import write_tiny


@pytest.mark.parametrize("size", [0, 33])
def test_a_folder_is_written_anew(tmp_path, capsys, size):
    source = write_tiny(tmp_path / "old", task="fill-mask")
    assert main(["convert", str(source), str(tmp_path / "new"), "--vocab_size", str(size)]) == 0
    assert "tensors used" in capsys.readouterr().out
    old, new = flaxbert.load(source), flaxbert.load(tmp_path / "new")
    assert new.task == "fill-mask"
    assert new.config.vocab_size == (size or old.config.vocab_size)
    for name, leaf in flatten_names(old.params).items():
        np.testing.assert_array_equal(flatten_names(new.params)[name][: len(leaf)], leaf)
    assert new.tokenizer("a fine film")["input_ids"] == old.tokenizer("a fine film")["input_ids"]


def test_an_output_that_exists_is_never_overwritten(tmp_path, capsys):
    source = write_tiny(tmp_path / "old")
    assert main(["convert", str(source), str(source)]) == 1
    assert "exists already" in capsys.readouterr().err
