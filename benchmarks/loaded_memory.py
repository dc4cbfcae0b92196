"""How much memory a process needs for the parameters of a model that it has loaded, and to quantize one.

    python -m benchmarks.loaded_memory --json results/loaded_memory.json

Models of BERT-base's and BERT-large's shape with random weights are written and quantized on the command line; the peak of that process is compared with
the size of the float32 parameters. Every form of the base model is then loaded in a process of its own, twice; the second time libraries
and code are there, and the growth of the resident set is what its parameters take.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks.runner import write_json
from benchmarks.settings import root

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
FORMS: dict[str, tuple[str, ...]] = {
    "float32": (),
    "int8": ("--bits", "8"),
    "int4, groups of 64": ("--bits", "4"),
    "int3, groups of 64": ("--bits", "3"),
}

_LOAD = """
import gc, json, sys, psutil
from flaxbert.core.runtime import configure
configure()
import flaxbert
from flaxbert.core.host_memory import return_freed_memory
from flaxbert.core.trees import size_bytes
def resident():
    gc.collect(); return_freed_memory()
    return psutil.Process().memory_info().rss
first = flaxbert.load(sys.argv[1])
before = resident()
model = flaxbert.load(sys.argv[1])
print(json.dumps({"parameters": size_bytes(model.params), "growth": resident() - before}))
"""


def write_model(folder: pathlib.Path, **sizes: Any) -> int:
    """Writes a model with random weights and returns the bytes of its parameters.

    Args:
      folder: Where it goes.
      **sizes: Fields of ``ModelConfig`` that differ from BERT-base.
    """
    from flaxbert.architecture import ModelConfig
    from flaxbert.core.trees import map_leaves, size_bytes
    from flaxbert.families.graph import abstract_params
    from flaxbert.weights.save import save_checkpoint

    config, generator = ModelConfig(**sizes), np.random.default_rng(0)
    params = map_leaves(
        lambda _, leaf: np.float32(0.02) * generator.standard_normal(leaf.shape, dtype=np.float32),
        abstract_params(config, "sequence-classification"),
    )
    save_checkpoint(folder, config=config, task="sequence-classification", params=params)
    return size_bytes(params)


def quantize(model: pathlib.Path, output: pathlib.Path, options: tuple[str, ...]) -> int:
    """Quantizes a model on the command line and returns the peak of that process in bytes.

    Args:
      model: Its folder.
      output: Folder of the quantized one.
      options: Further words.
    """
    code = (
        "import resource, sys; from flaxbert.cli.main import main; code = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    words = [sys.executable, "-c", code, "quantize", str(model), str(output), *options]
    done = subprocess.run(words, cwd=root(), capture_output=True, text=True, check=True)
    return int(done.stderr.strip().splitlines()[-1]) * (1024 if sys.platform != "darwin" else 1)


def load(model: pathlib.Path) -> dict[str, Any]:
    """Returns the bytes of a model's parameters and by how much a process grows that loads it.

    Args:
      model: Its folder.
    """
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(model)], cwd=root(), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Writes, quantizes, loads, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="results/loaded_memory.json", help="file of the results")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as name:
        folder = pathlib.Path(name)
        size = write_model(folder / "large", **LARGE)
        peak = quantize(folder / "large", folder / "large8", ())
        print(
            f"quantizing BERT-large: peak {peak / 1e6:.0f} MB, {peak / size:.2f} of its {size / 1e6:.0f} MB in float32"
        )
        write_model(folder / "base")
        print(f"{'BERT-base':<20} {'parameters MB':>13} {'process MB':>10} {'of float32':>10}")
        for form, options in FORMS.items():
            model = folder / "base"
            if options:
                model = folder / form.replace(" ", "")
                quantize(folder / "base", model, options)
            found = load(model)
            rows.append({"form": form, **found})
            share = found["growth"] / rows[0]["growth"]
            print(
                f"{form:<20} {found['parameters'] / 1e6:>13.1f} {found['growth'] / 1e6:>10.1f} {share:>10.3f}",
                flush=True,
            )
    write_json(arguments.json, {"large_bytes": size, "large_peak_bytes": peak, "rows": rows})


if __name__ == "__main__":
    main()
