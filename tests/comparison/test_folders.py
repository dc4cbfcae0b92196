"""Names of models, and folders that can not be compared."""

import pytest

from flaxbert.comparison.folders import display_names, find_folders
from flaxbert.errors import ConfigError, FlaxbertError, WeightsError


@pytest.mark.parametrize(
    ("sources", "names", "expected"),
    [
        (["/a/base/", "./b/int8", "org/model"], (), ["base", "int8", "org/model"]),
        (["/a/one/best", "/a/two/best"], (), ["one/best", "best"]),
        (["x", "x"], (), ["x (1)", "x"]),
        (["x", "y"], ("first", "second"), ["first", "second"]),
    ],
)
def test_names_are_short_and_different(sources, names, expected):
    found = display_names(sources, names)
    assert found == expected
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ("a", "")])
def test_given_names_must_be_one_for_each(names):
    with pytest.raises(ConfigError, match="one name for each of the 2 models"):
        display_names(["x", "y"], names)


def test_folders_are_opened_and_counted(models):
    found = {folder.name: folder for folder in find_folders(list(models.values()))}
    assert list(found) == list(models)
    whole = found["float"]
    assert whole.task == "sequence-classification"
    assert (whole.max_length, whole.has_tokenizer, whole.report) == (16, True, None)
    assert whole.size.num_parameters == found["both"].size.num_parameters
    assert found["both"].size.num_nonzero < whole.size.num_nonzero
    assert found["int8"].report["transform"] == "quantize"


def test_a_broken_folder_is_named_before_anything_is_measured(models, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"Model 'empty' can not be compared: .*no config\.json"):
        find_folders([models["float"], str(tmp_path / "empty")])
    with pytest.raises(FlaxbertError, match="Model 'nothing' can not be compared"):
        find_folders([models["float"], str(tmp_path / "nothing")])
    with pytest.raises(ConfigError, match="needs two models at least"):
        find_folders([models["float"]])
