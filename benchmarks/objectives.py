"""What pre-training objectives teach at equal compute: fine-tuned accuracy of hidden words and replaced tokens, accuracy of sentence pairs.

    python -m benchmarks.objectives words --size tiny --steps 3000 --seeds 0 1 2
    python -m benchmarks.objectives pairs --size tiny --steps 3000

*words*: an ELECTRA encoder from new weights learns to fill in hidden words, or to find replaced tokens beside a generator, for as many
floating point operations; then each is fine-tuned on the first examples of SST-2, and so is one that learned nothing. Every rate of
``--finetune-learning-rates`` is tried, and the best one of each encoder counts. *pairs*: BERT learns next sentences and ALBERT the order of
sentences beside hidden words. The corpus is the novels in ``FLAXBERT_TEST_DATA`` unless ``--corpus`` names a folder that ``flaxbert prepare``
wrote. With ``--scratch`` the runs of pre-training stay there, and the same command again only fine-tunes.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.novels import prepare_novels
from benchmarks.runner import machine, write_json
from benchmarks.tasks import read_run

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PAIRS = {"next_sentence": "bert", "sentence_order": "albert"}
"""Family that learns each objective."""


def run_config(
    arguments: argparse.Namespace, corpus: pathlib.Path, folder: pathlib.Path, family: str, **more: Any
) -> Any:
    """Returns a pre-training run.

    Args:
      arguments: Size, steps, batch, learning rate.
      corpus: The prepared corpus.
      folder: Where it writes.
      family: Family of the model.
      **more: Objective, and steps that differ.
    """
    from flaxbert.config import (
        MaskingConfig,
        ObjectiveConfig,
        OutputConfig,
        PretrainConfig,
        PretrainData,
        PretrainModel,
        TrainConfig,
    )

    steps = more.pop("steps", arguments.steps)
    architecture = {**NO_DROPOUT, "initializer_range": arguments.initializer_range}
    if family in ("electra", "albert"):
        architecture["embedding_size"] = 128
    return PretrainConfig(
        model=PretrainModel(
            family=family, size=arguments.size, architecture=architecture, precision=arguments.precision
        ),
        data=PretrainData(
            corpora=(str(corpus),), row_length=arguments.length, validation_rate=0.05, max_validation_rows=4096
        ),
        masking=MaskingConfig(rate=0.15),
        objective=ObjectiveConfig(**more),
        train=TrainConfig(
            batch_size=arguments.batch_size,
            num_steps=steps,
            learning_rate=arguments.learning_rate,
            adam_beta2=0.98,
            evaluate_every=max(1, steps // arguments.evaluations),
            evaluation_batch_size=64,
            load_best_at_end=False,
            log_every=100,
            seed=arguments.pretraining_seed,
        ),
        output=OutputConfig(folder=str(folder), tensorboard=False, plots=False, progress="off"),
    )


def flops_of_step(config: Any, vocab_size: int) -> float:
    """Returns the operations of a step as training counts them.

    Args:
      config: The run.
      vocab_size: Entries of the tokenizer.
    """
    from flaxbert.planning.workloads import pretraining_workloads

    return pretraining_workloads(config, vocab_size)[0].flops_per_row * config.train.batch_size


def pretrain_once(config: Any) -> tuple[dict[str, float], float]:
    """Returns the last metrics of a run and its seconds.

    Args:
      config: The run.
    """
    from flaxbert.train.recipes.pretrain import pretrain

    start = time.perf_counter()
    result = pretrain(config, say=lambda line: print(f"  {line}", flush=True))
    if result.reason == "preempted":
        raise SystemExit("Stopped; with --scratch the same command goes on from here.")
    return dict(result.after), time.perf_counter() - start


def finetune_sst2(
    model: str, arguments: argparse.Namespace, folder: pathlib.Path, *, examples: int, learning_rate: float, seed: int
) -> float:
    """Returns the accuracy on SST-2's dev split after fine-tuning.

    Args:
      model: Folder of the model.
      arguments: Passes, precision.
      folder: Where the run writes.
      examples: So many of the first examples are learned; 0 for all.
      learning_rate: Peak of the schedule.
      seed: Seed of head and order.
    """
    from flaxbert.train.recipes.finetune import finetune

    options = argparse.Namespace(
        model=model, epochs=arguments.finetune_epochs, learning_rate=learning_rate, precision=arguments.precision
    )
    run = read_run("sst2", options, folder, seed)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, max_train_examples=examples))
    return float(finetune(run, say=lambda line: None).after["accuracy"])


def finetune_all(model: str, arguments: argparse.Namespace) -> dict[int, dict[float, list[float]]]:
    """Returns the accuracies on SST-2 by number of examples and by rate, one for each seed.

    Args:
      model: Folder of the model.
      arguments: Examples, rates, seeds and passes.
    """
    found: dict[int, dict[float, list[float]]] = {}
    for examples in arguments.examples:
        found[examples] = {}
        for rate in arguments.finetune_learning_rates:
            with tempfile.TemporaryDirectory(prefix="flaxbert-sst2-") as folder:
                found[examples][rate] = [
                    finetune_sst2(
                        model,
                        arguments,
                        pathlib.Path(folder) / str(seed),
                        examples=examples,
                        learning_rate=rate,
                        seed=seed,
                    )
                    for seed in arguments.seeds
                ]
            print(f"  {_finetuned(examples, rate, found[examples][rate])}", flush=True)
    return found


def compare_words(arguments: argparse.Namespace, corpus: pathlib.Path, scratch: pathlib.Path) -> dict[str, Any]:
    """Pre-trains with both objectives at equal operations, fine-tunes, and prints the table.

    Args:
      arguments: Options of the program.
      corpus: The prepared corpus.
      scratch: Where runs write.
    """
    hidden = run_config(arguments, corpus, scratch / "hidden words", "electra")
    replaced = functools.partial(
        run_config,
        arguments,
        corpus,
        scratch / "replaced tokens",
        "electra",
        replaced_tokens=True,
        generator_rate=0.5,
    )
    share = flops_of_step(hidden, arguments.vocab_size) / flops_of_step(replaced(), arguments.vocab_size)
    runs = {
        "hidden words": hidden,
        "replaced tokens": replaced(steps=max(1, round(share * arguments.steps))),
        "nothing": run_config(arguments, corpus, scratch / "nothing", "electra", steps=1),
    }
    rows = []
    for name, config in runs.items():
        metrics, seconds = pretrain_once(config)
        total = flops_of_step(config, arguments.vocab_size) * config.train.num_steps
        rows.append(
            {
                "objective": name,
                "steps": config.train.num_steps,
                "flops": total,
                "seconds": seconds,
                "metrics": metrics,
            }
        )
        print(f"{name}: {config.train.num_steps} steps, {total / 1e12:.2f} T operations, {seconds:.0f} s", flush=True)
    for row in rows:
        print(f"{row['objective']}, SST-2:", flush=True)
        model = pathlib.Path(runs[row["objective"]].output.folder) / "model"
        row["accuracies"] = finetune_all(str(model), arguments)
    for examples in arguments.examples:
        print(f"Best rate of each, SST-2, {examples or 'all'} examples:")
        for row in rows:
            rate, scores = max(row["accuracies"][examples].items(), key=lambda found: statistics.mean(found[1]))
            print(f"  {row['objective']}: {_finetuned(examples, rate, scores)}", flush=True)
    return {"words": rows}


def _finetuned(examples: int, rate: float, scores: Sequence[float]) -> str:
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return (
        f"{examples or 'all'} examples at {rate:g}: accuracy {statistics.mean(scores):.4f} ± {spread:.4f} over "
        f"{len(scores)} seeds"
    )


def measure_pairs(arguments: argparse.Namespace, corpus: pathlib.Path, scratch: pathlib.Path) -> dict[str, Any]:
    """Pre-trains with pairs of sentences, and prints how far from chance their accuracy on held-out text is.

    Args:
      arguments: Options of the program.
      corpus: The prepared corpus.
      scratch: Where runs write.
    """
    from flaxbert.config import IGNORED_LABEL
    from flaxbert.train.recipes.pretraining_setup import prepare_pretraining

    rows = []
    for pairs, family in PAIRS.items():
        if pairs not in arguments.pairs:
            continue
        config = run_config(arguments, corpus, scratch / pairs, family, pairs=pairs)
        held = prepare_pretraining(config, say=lambda line: None).validation
        numbers = list(range(min(len(held), config.data.max_validation_rows)))
        labels = held.rows(numbers, -1)["pair_labels"]
        count = int((labels != IGNORED_LABEL).sum())
        share = float((labels == 1).sum()) / count
        chance = max(share, 1.0 - share)
        metrics, seconds = pretrain_once(config)
        margin = (metrics["pair_accuracy"] - chance) / math.sqrt(chance * (1.0 - chance) / count)
        rows.append(
            {"pairs": pairs, "family": family, "count": count, "chance": chance, "seconds": seconds, "metrics": metrics}
        )
        print(
            f"{pairs} ({family}): accuracy {metrics['pair_accuracy']:.4f} on {count} held-out pairs, {margin:.1f} standard errors over the "
            f"{chance:.4f} of the commoner answer; perplexity {metrics['perplexity']:.1f}, {seconds:.0f} s",
            flush=True,
        )
    return {"pairs": rows}


def main(options: Sequence[str] | None = None) -> None:
    """Trains, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["words", "pairs"])
    parser.add_argument("--corpus", default="", help="prepared corpus; default the novels")
    parser.add_argument("--scratch", default="", help="folder that keeps novels and runs; default a temporary one")
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the tokenizer of the novels")
    parser.add_argument("--size", default="tiny", help="size of the model")
    parser.add_argument(
        "--steps", type=int, default=3000, help="optimizer steps; of hidden words where both are compared"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="rows of a step")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--initializer-range", type=float, default=0.02)
    parser.add_argument("--evaluations", type=int, default=5, help="evaluations of a run")
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--pretraining-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of fine-tuning")
    parser.add_argument("--finetune-epochs", type=float, default=4.0)
    parser.add_argument("--finetune-learning-rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--examples", type=int, nargs="+", default=[4000], help="of SST-2; 0 for all")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--json", default="results/objectives.json", help="file of the results")
    arguments = parser.parse_args(options)
    from flaxbert.core.runtime import configure

    configure()
    with tempfile.TemporaryDirectory(prefix="flaxbert-bench-") as temporary:
        scratch = pathlib.Path(arguments.scratch or temporary)
        corpus = pathlib.Path(arguments.corpus or prepare_novels(scratch, arguments.vocab_size))
        found = (compare_words if arguments.what == "words" else measure_pairs)(arguments, corpus, scratch)
    write_json(arguments.json, {"machine": machine(), "options": vars(arguments), **found})


if __name__ == "__main__":
    main()
