"""A file is the old one or the new one, never a part."""

import pytest

from flaxbert.core.files import whole_file


def names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("durable", [False, True])
def test_the_file_appears_when_the_block_ends(tmp_path, durable):
    target = tmp_path / "scores.json"
    with whole_file(target, durable=durable) as partial:
        partial.write_text("new", encoding="utf-8")
        assert not target.exists()
        assert partial.parent == tmp_path
    assert target.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "scores.json"
    target.write_text("old", encoding="utf-8")

    def interrupted():
        with whole_file(target) as partial:
            partial.write_text("ne", encoding="utf-8")
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["scores.json"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(str(tmp_path / "scores.json")):
        pass
    assert names(tmp_path) == []
