"""Plans as tables and as JSON."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from flaxbert.core.units import format_bytes, format_count
from flaxbert.evaluation.report import text_table
from flaxbert.planning.chips import Chip
from flaxbert.planning.planner import MeshPlan
from flaxbert.planning.topology import Topology
from flaxbert.planning.workloads import Workload


def mesh_words(mesh: dict[str, int]) -> str:
    """Returns a mesh in words, axes of size 1 left out.

    Args:
      mesh: Sizes of the axes by name.
    """
    return " x ".join(f"{name} {size}" for name, size in mesh.items() if size > 1) or "one device"


def _work(number: float, unit: str = "FLOP") -> str:
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number / 1e6:.3g} M{unit}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _hours(seconds: float, num_devices: int) -> str:
    return f"{seconds / 3600:.1f} hours, {seconds / 3600 * num_devices:,.0f} device hours"


def _largest(plan: MeshPlan) -> str:
    return "not looked for" if plan.largest_batch < 0 else f"{plan.largest_batch} a device at once"


def _memory_rows(plan: MeshPlan) -> Iterable[tuple[str, str]]:
    memory = plan.memory
    yield "parameters", format_bytes(memory.parameters)
    yield "optimizer state", format_bytes(memory.optimizer)
    yield "batch", format_bytes(memory.batch)
    yield (
        "activations (grow with the batch)",
        format_bytes(memory.activations) if plan.largest_batch >= 0 else "not split",
    )
    other = "temporaries" if plan.largest_batch >= 0 else "activations and temporaries"
    yield other, format_bytes(memory.temporaries)
    yield "all, of what a program can use", f"{format_bytes(memory.total)} of {format_bytes(memory.limit)}"
    yield "fits", "yes" if memory.fits else "NO"
    yield "largest batch that fits", _largest(plan)


def _cost_rows(plan: MeshPlan) -> Iterable[tuple[str, str]]:
    estimate = plan.estimate
    if estimate is None:
        yield "time", "not known: the compiler refused the step, which does not fit"
        return
    by_type = ", ".join(f"{_work(value)} {name}" for name, value in estimate.flops.items())
    yield "matrix FLOPs", by_type
    yield "of these the model's own", _work(plan.model_flops / plan.num_devices)
    yield "elementwise operations", _work(estimate.operations, "op")
    yield "bytes moved in main memory", format_bytes(estimate.moved_bytes)
    for (kind, link), found in sorted(estimate.collectives.items()):
        yield (
            f"{kind} over {link.upper()}",
            f"{found.count:.0f}, {format_bytes(found.size_bytes)}, {_milliseconds(found.seconds)}, exposed {_milliseconds(found.exposed_seconds)}",
        )
    yield "time bound by matrix products", _milliseconds(estimate.matmul_seconds)
    yield "of it, filling up the matrix unit", _milliseconds(estimate.unfilled_seconds)
    yield "time bound by elementwise work", _milliseconds(estimate.vector_seconds)
    yield "time bound by main memory", _milliseconds(estimate.memory_seconds + estimate.copy_seconds)
    yield "collectives that nothing hides", _milliseconds(estimate.exposed_seconds)
    yield "time of a step", _milliseconds(estimate.seconds)
    yield "tokens per second and device", format_count(plan.tokens_per_second_per_device)
    yield "MFU", f"{plan.utilization:.1%}"
    yield "device hours for a billion tokens", f"{1e9 / plan.tokens_per_second_per_device / 3600:.2f}"
    if plan.num_steps:
        yield f"all {plan.num_steps:,} steps", _hours(plan.run_seconds, plan.num_devices)
    gathered = ", ".join(plan.gathered_activations[:3])
    yield "all-gathers of the batch", f"{len(plan.gathered_activations)} ({gathered})" if gathered else "none"


def plan_text(plan: MeshPlan) -> str:
    """Returns the table of one mesh; all numbers but MFU are per device and step.

    Args:
      plan: The plan.
    """
    title = f"Mesh {mesh_words(plan.mesh)}: {plan.batch_size} examples a step, {plan.batch_per_device} a device at once"
    rows = [list(row) for row in (*_memory_rows(plan), *_cost_rows(plan))]
    return text_table(["per device and step", "value"], rows, title=title)


def ranking_text(plans: Sequence[MeshPlan]) -> str:
    """Returns one line for each plan, in the order given.

    Args:
      plans: The plans.
    """
    rows = []
    for number, plan in enumerate(plans, start=1):
        known = plan.estimate is not None
        rows.append(
            [
                f"{number}. {mesh_words(plan.mesh)}",
                str(plan.batch_per_device),
                str(plan.batch_size),
                format_bytes(plan.memory.total),
                "yes" if plan.memory.fits else "NO",
                _milliseconds(plan.estimate.seconds) if plan.estimate else "-",
                format_count(plan.tokens_per_second_per_device) if known else "-",
                _milliseconds(plan.estimate.exposed_seconds) if plan.estimate else "-",
                f"{plan.utilization:.1%}" if known else "-",
            ]
        )
    headers = ["mesh", "batch/device", "batch", "memory", "fits", "step", "tokens/s/device", "exposed", "MFU"]
    return text_table(headers, rows)


def run_text(plans: Sequence[MeshPlan]) -> str:
    """Returns what all phases of a run take together, on one mesh; empty where that is not known.

    Args:
      plans: The plan of each phase.
    """
    if len(plans) < 2 or not all(plan.run_seconds for plan in plans):
        return ""
    seconds = sum(plan.run_seconds for plan in plans)
    steps = sum(plan.num_steps for plan in plans)
    return f"All {len(plans)} phases, {steps:,} steps, mesh {mesh_words(plans[0].mesh)}: {_hours(seconds, plans[0].num_devices)}\n"


def header_text(workloads: Sequence[Workload], topology: Topology, chip: Chip) -> str:
    """Returns lines that say what is planned, for what, over which peaks.

    Args:
      workloads: The phases of the run.
      topology: The devices.
      chip: Their peaks.
    """
    titles = "".join(
        f"{workload.title[0].upper()}{workload.title[1:]}; every token counts as real\n" for workload in workloads
    )
    return (
        f"{titles}"
        f"{topology.describe()}\n"
        f"Peaks: {_work(chip.peak_flops, 'FLOP/s')} bf16, {format_bytes(chip.memory_bandwidth)}/s memory, "
        f"{format_bytes(chip.link_bandwidth)}/s a link and direction, {format_bytes(chip.outer_bandwidth)}/s between slices or nodes "
        f"({chip.source})"
    )


def plan_document(
    topology: Topology, chip: Chip, found: Sequence[tuple[Workload, Sequence[MeshPlan]]]
) -> dict[str, Any]:
    """Returns everything that was found, fit for JSON.

    Args:
      topology: The devices.
      chip: Their peaks.
      found: The plans of every phase of the run.
    """
    return {
        "topology": topology.name,
        "compiled_for": topology.describe(),
        "chip": dataclasses.asdict(chip),
        "phases": [
            {"run": workload.title, "plans": [_plan_entry(plan) for plan in plans]} for workload, plans in found
        ],
    }


def _plan_entry(plan: MeshPlan) -> dict[str, Any]:
    entry = dataclasses.asdict(plan)
    if plan.estimate is not None:
        entry["estimate"]["collectives"] = [
            {"kind": kind, "link": link, **dataclasses.asdict(moved)}
            for (kind, link), moved in plan.estimate.collectives.items()
        ]
    return entry | {
        "fits": plan.memory.fits,
        "batch_per_device": plan.batch_per_device,
        "model_flops_utilization": plan.utilization,
        "tokens_per_second_per_device": plan.tokens_per_second_per_device,
        "run_seconds": plan.run_seconds,
    }
