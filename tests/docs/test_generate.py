"""The page of options is what the dataclasses say."""

import dataclasses
import typing

import pytest

from docs import generate
from flaxbert.config import DistillConfig, FreezeRule


def test_the_page_is_up_to_date() -> None:
    message = "docs/configuration.md differs from flaxbert/config/; run `make docs` and commit the result"
    assert generate.PATH.read_text(encoding="utf-8") == generate.render(), message


def test_every_option_has_a_row_with_a_meaning() -> None:
    run, text = DistillConfig(), generate.render()
    for section in dataclasses.fields(run):
        if section.name == "intermediate":  # the options of train
            continue
        for field in dataclasses.fields(getattr(run, section.name)):
            row = next(line for line in text.splitlines() if line.startswith(f"| `{section.name}.{field.name}` |"))
            assert len(row.split(" | ")[-1]) > 10


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (bool, "true or false"),
        (int | typing.Literal["auto"], "integer or `auto`"),
        (tuple[float, ...], "list of number"),
        (tuple[FreezeRule, ...], "list of {pattern: text, frozen: true or false}"),
    ],
)
def test_types_read_as_words(annotation: typing.Any, text: str) -> None:
    assert generate.describe_type(annotation) == text


def test_check_notices_a_change(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(generate, "PATH", tmp_path / "configuration.md")
    assert generate.main(["--check"]) == 1
    assert "make docs" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert generate.main(["--other"]) == 2
