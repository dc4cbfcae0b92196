"""JSON files of a folder: errors that name file and line."""

import pytest

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.json_files import read_json, read_json_object


def test_json_errors_name_file_and_line(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{\n "a": 1,\n oops\n}')
    with pytest.raises(WeightsError, match=r"config.json is no JSON: .* line 3"):
        read_json(file)
    file.write_text("[1]")
    with pytest.raises(WeightsError, match="holds a JSON list"):
        read_json_object(file)
    with pytest.raises(WeightsError, match="can not be read"):
        read_json(tmp_path / "absent.json")
    file.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(WeightsError, match="is no JSON"):
        read_json(file)
    for text in ("9" * 5000, "[" * 60000):
        file.write_text(text)
        with pytest.raises(WeightsError, match="is no JSON"):
            read_json(file)
