"""What each way of storing a sentence encoder costs: bytes in memory and on disk, and agreement with people on STS-B.

    python -m benchmarks.compression --json results/compression.json

Every mode compresses the same model as it is, without further training. Its vectors of the dev split's sentences give a similarity for each pair;
Spearman's correlation with the people's scores is compared with that of the uncompressed model, with the interval of the difference from 1000
paired draws of the pairs. STS-B lies in ``FLAXBERT_TEST_DATA``.
"""

import argparse
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.models import installed_minilm
from benchmarks.runner import machine, write_json

Transform = Callable[[Mapping[str, Any]], Any]


def modes() -> dict[str, Transform]:
    """Returns what is done to the parameters in each mode, by its name."""
    from flaxbert.transforms import (
        GroupSparsity,
        QuantizationSpec,
        default_quantization_rules,
        default_sparsity_rules,
        quantize,
        sparsify,
    )

    def quantized(spec: QuantizationSpec) -> Transform:
        return lambda params: quantize(params, default_quantization_rules(spec))[0]

    return {
        "float32": lambda params: params,
        "int8": quantized(QuantizationSpec()),
        "int4, groups of 128": quantized(QuantizationSpec(4, 128)),
        "int4, groups of 64": quantized(QuantizationSpec(4, 64)),
        "int4, groups of 32": quantized(QuantizationSpec(4, 32)),
        "2:4": lambda params: sparsify(params, default_sparsity_rules(GroupSparsity(2, 4)))[0],
    }


def read_pairs(file: pathlib.Path) -> tuple[list[str], list[str], np.ndarray]:
    """Returns first and second sentences and the people's scores.

    Args:
      file: ``sts-dev.csv`` as published: tab-separated, without quoting or header.
    """
    rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()]
    return [row[5] for row in rows], [row[6] for row in rows], np.array([float(row[4]) for row in rows])


def similarities(model: Any, first: list[str], second: list[str]) -> np.ndarray:
    """Returns the cosine of each pair's vectors.

    Args:
      model: The sentence encoder.
      first: First sentences.
      second: Second sentences.
    """
    vectors = [np.asarray(model.encode(texts, normalize=True), np.float64) for texts in (first, second)]
    return np.sum(vectors[0] * vectors[1], axis=1)


def disk_bytes(model: Any) -> int:
    """Returns the size of a model's files of weights.

    Args:
      model: The model.
    """
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as folder:
        model.save(pathlib.Path(folder) / "model")
        return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*.safetensors"))


def main() -> None:
    """Compresses, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder of a sentence encoder; default the installed MiniLM")
    parser.add_argument("--only", nargs="*", default=[], help="names of the modes beside float32; default all")
    parser.add_argument("--json", default="results/compression.json", help="file of the results")
    arguments = parser.parse_args()
    from flaxbert.core.runtime import configure

    configure()
    import flaxbert
    from flaxbert.core.trees import size_bytes
    from flaxbert.evaluation.bootstrap import bootstrap_interval

    data = os.environ.get("FLAXBERT_TEST_DATA")
    if not data:
        raise SystemExit("Set FLAXBERT_TEST_DATA to the folder that holds stsb/sts-dev.csv.")
    unknown = set(arguments.only) - set(modes())
    if unknown:
        raise SystemExit(f"There are no modes {', '.join(sorted(unknown))}; known are {', '.join(modes())}.")
    first, second, scores = read_pairs(pathlib.Path(data) / "stsb" / "sts-dev.csv")
    model = flaxbert.load(arguments.model or str(installed_minilm()))
    reference, rows = np.zeros(0), []
    print(f"{'mode':<22} {'memory MB':>9} {'of f32':>7} {'disk MB':>8} {'Spearman':>9}  difference (95 %)")
    for name, transform in modes().items():
        if arguments.only and name not in (*arguments.only, "float32"):
            continue
        started = time.perf_counter()
        compressed = model.replace(params=transform(model.params))
        seconds = time.perf_counter() - started
        found = similarities(compressed, first, second)
        reference = found if name == "float32" else reference
        whole = bootstrap_interval(found, scores, "spearman")
        change = bootstrap_interval(reference, scores, "spearman", other=found)
        row = {
            "mode": name,
            "memory_bytes": size_bytes(compressed.params),
            "disk_bytes": disk_bytes(compressed),
            "compress_seconds": seconds,
            "spearman": whole.value,
            "spearman_interval": [whole.low, whole.high],
            "difference": change.value,
            "difference_interval": [change.low, change.high],
        }
        rows.append(row)
        share = row["memory_bytes"] / rows[0]["memory_bytes"]
        print(
            f"{name:<22} {row['memory_bytes'] / 1e6:>9.2f} {share:>7.3f} {row['disk_bytes'] / 1e6:>8.2f} {whole.value:>9.4f}  "
            f"{change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f})",
            flush=True,
        )
    write_json(arguments.json, {"machine": machine(), "options": vars(arguments), "rows": rows})


if __name__ == "__main__":
    main()
