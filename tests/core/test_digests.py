"""The manifest finds every changed byte, in the files and in itself."""

import pathlib

import pytest

from flaxbert.core.digests import MANIFEST_NAME, find_damage, read_manifest, write_manifest
from flaxbert.errors import DataError


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "arrays" / "d").mkdir(parents=True)
    (tmp_path / "arrays" / "d" / "0f").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "arrays" / "empty").write_bytes(b"")
    (tmp_path / "höst.json").write_text('{"a": 1}')
    write_manifest(tmp_path)
    return tmp_path


def test_whole_folder_has_no_damage_and_every_file_is_named(folder):
    assert find_damage(folder) == ()
    assert set(read_manifest(folder)) == {"arrays/d/0f", "arrays/empty", "höst.json"}
    assert read_manifest(folder)["arrays/d/0f"].size_bytes == 10240


def test_every_flipped_byte_of_the_manifest_is_found(folder):
    path = folder / MANIFEST_NAME
    content = path.read_bytes()
    for position in range(len(content)):
        for mask in (0x01, 0x20, 0x80):
            changed = bytearray(content)
            changed[position] ^= mask
            path.write_bytes(changed)
            assert find_damage(folder, contents=False), (position, mask)


def test_every_truncation_of_the_manifest_is_found(folder):
    path = folder / MANIFEST_NAME
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="manifest"):
            read_manifest(folder)


@pytest.mark.parametrize("position", [0, 1, 5000, 10239])
def test_flipped_byte_of_a_file_is_found_by_content_only(folder, position):
    path = folder / "arrays" / "d" / "0f"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert find_damage(folder) == ("arrays/d/0f: content differs from its SHA-256",)
    assert find_damage(folder, contents=False) == ()


def test_missing_shortened_and_linked_files_are_named(folder, tmp_path_factory):
    (folder / "arrays" / "empty").unlink()
    other = tmp_path_factory.mktemp("other") / "host.json"
    (folder / "höst.json").rename(other)
    (folder / "höst.json").symlink_to(other)
    (folder / "arrays" / "d" / "0f").write_bytes(b"short")
    assert find_damage(folder, contents=False) == (
        "arrays/d/0f: has 5 bytes instead of 10240",
        "arrays/empty: missing",
        "höst.json: is a link",
    )


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b'{"files": 3}', b'{"files": {"a": {}}}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_manifest_is_an_error_and_damage(folder, content):
    (folder / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(DataError, match=r"is not a manifest|is not as it was written"):
        read_manifest(folder)
    assert len(find_damage(folder)) == 1


def test_names_outside_the_folder_are_damage(tmp_path):
    from flaxbert.core.digests import FileDigest, _encode

    (tmp_path / MANIFEST_NAME).write_bytes(
        _encode({"../secret": FileDigest(1, "0"), "/etc/hostname": FileDigest(1, "0")})
    )
    assert [damage.split(": ")[1] for damage in find_damage(tmp_path)] == ["lies outside the folder"] * 2
