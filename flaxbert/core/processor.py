"""What the processor can do, as far as the system says."""

import pathlib

_PROCESSOR_FILE = pathlib.Path("/proc/cpuinfo")


def processor_features() -> str:
    """Returns what Linux says that the processor can do, in one line; empty where it says nothing."""
    try:
        lines = _PROCESSOR_FILE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def sums_bytes_exactly() -> bool:
    """Returns whether products of bytes are summed in 32 bits by one instruction, which engines such as ONNX Runtime and OpenVINO use.

    Without AVX512-VNNI or AMX they use instructions that sum two products in 16 bits, where full codes overflow.
    """
    return not {"avx512_vnni", "amx_int8"}.isdisjoint(processor_features().split())


def multiplies_bfloat16() -> bool:
    """Returns whether the processor has a matrix unit for bfloat16 (AMX)."""
    return "amx_bf16" in processor_features().split()
