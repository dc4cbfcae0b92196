"""What the processor can do, from what Linux says."""

import pytest

from flaxbert.core import processor


@pytest.mark.parametrize(
    ("content", "exact", "halves"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni\n", True, False),
        ("flags\t\t: fpu avx2 amx_bf16 amx_int8\n", True, True),
        ("flags\t\t: fpu avx2 avx512_bf16\n", False, False),
        ("nothing of the kind", False, False),
        (None, False, False),
    ],
)
def test_instructions_are_found_by_name(monkeypatch, tmp_path, content, exact, halves):
    file = tmp_path / "cpuinfo"
    if content is not None:
        file.write_text(content, "utf-8")
    monkeypatch.setattr(processor, "_PROCESSOR_FILE", file)
    assert processor.sums_bytes_exactly() == exact
    assert processor.multiplies_bfloat16() == halves
