"""What the server adds to the model: one client's requests, in turn with bare runs of the same engine on the same tokens.

    python -m benchmarks.overhead --model MiniLM --engines jax openvino --requests 300

A bare run is ``Engine.run`` on a batch of one row, padded as the server pads it; tokenizing, batching and HTTP are what is added. The server is another
process and idle while a bare run is timed, and the other way round: between the two is a pause, since threads of engines spin for a while after a run. The table shows medians, 99th percentiles, and the median of the differences of pairs.
"""

import argparse
import http.client
import json
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.models import model_folder
from benchmarks.runner import machine, write_json
from benchmarks.serving import FIRST_PORT, Server, serve_words, texts

PAUSE_S = 0.02


def bare_engine(folder: str, engine: str) -> Any:
    """Returns a version of the model with its engine ready, as the server has it.

    Args:
      folder: The model.
      engine: Name of the engine.
    """
    from flaxbert.core.runtime import configure
    from flaxbert.serve.loading import EngineOptions, load_served, locate, parse_specs

    configure(use_compilation_cache=False)
    spec = parse_specs((f"model={folder}",))[0]
    return load_served(spec, locate(spec), EngineOptions(engine=engine))


def batch_of(served: Any, text: str) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the name of the function and the batch that a text becomes.

    Args:
      served: The version.
      text: The text.
    """
    from flaxbert.data.tokenization import tokenize
    from flaxbert.serve.functions import POOL_MASK
    from flaxbert.serve.rows import collate_rows, rows_of

    engine = served.engine
    function = engine.functions.get("vectors") or next(iter(engine.functions.values()))
    longest = engine.plan.lengths[-1]
    rows = rows_of(tokenize(served.subject.model.tokenizer, [text], max_length=longest))
    length = engine.plan.bucket(rows[0].length) if engine.exact_shapes else rows[0].length
    batch = collate_rows(rows, 1, length, function.inputs, engine.pad_token_id)
    if POOL_MASK in batch:
        batch[POOL_MASK] = batch["attention_mask"].copy()
    return function.name, batch


def measure(engine: str, folder: str, path: str, port: int, chosen: list[str]) -> dict[str, Any]:
    """Returns the times of one engine.

    Args:
      engine: Its name.
      folder: The model.
      path: Route that is asked.
      port: Port of the server.
      chosen: The texts.
    """
    server = Server(engine, serve_words(folder, engine), port, path, False)
    try:
        ready = server.wait()
        served = bare_engine(folder, engine)
        batches = [batch_of(served, text) for text in chosen]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        asked, bare = [], []
        for number, (text, (name, batch)) in enumerate(zip(chosen, batches, strict=True)):
            body = json.dumps({"inputs": text})
            begun = time.perf_counter()
            connection.request("POST", path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            asked_s = time.perf_counter() - begun
            time.sleep(PAUSE_S)
            begun = time.perf_counter()
            served.engine.run(name, batch)
            bare_s = time.perf_counter() - begun
            time.sleep(PAUSE_S)
            if response.status != 200:
                raise RuntimeError(f"{engine}: status {response.status}")
            if number >= len(chosen) // 10:  # the first ones warm caches
                asked.append(asked_s)
                bare.append(bare_s)
    finally:
        server.close()
    times, runs = 1000 * np.asarray(asked), 1000 * np.asarray(bare)
    return {
        "engine": engine,
        "ready_s": ready,
        "request_p50_ms": float(np.median(times)),
        "request_p99_ms": float(np.percentile(times, 99)),
        "bare_p50_ms": float(np.median(runs)),
        "bare_p99_ms": float(np.percentile(runs, 99)),
        "added_p50_ms": float(np.median(times) - np.median(runs)),
        "added_by_pairs_ms": float(np.median(times - runs)),
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="MiniLM", help="MiniLM, base, or a folder")
    parser.add_argument("--task", choices=("embed", "predict"), default="embed")
    parser.add_argument("--engines", nargs="+", default=["jax"], help="engines of flaxbert")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as scratch:
        folder = model_folder(arguments.model, pathlib.Path(scratch), arguments.task)
        chosen = texts(arguments.requests)
        rows = [
            measure(engine, folder, f"/{arguments.task}", FIRST_PORT + 50 + place, chosen)
            for place, engine in enumerate(arguments.engines)
        ]
    print(
        f"{'engine':<14}{'request p50':>12}{'p99':>9}{'bare p50':>10}{'p99':>9}{'added p50':>11}{'by pairs':>10}   (ms)"
    )
    for row in rows:
        print(
            f"{row['engine']:<14}{row['request_p50_ms']:>12.2f}{row['request_p99_ms']:>9.2f}{row['bare_p50_ms']:>10.2f}"
            f"{row['bare_p99_ms']:>9.2f}{row['added_p50_ms']:>11.2f}{row['added_by_pairs_ms']:>10.2f}"
        )
    if arguments.json:
        write_json(arguments.json, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
