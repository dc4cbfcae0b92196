"""What ``flaxbert plan`` does: plans the meshes that were asked for, or searches; prints tables; writes JSON."""

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence

from flaxbert.config import MeshConfig, PretrainConfig, RunConfig
from flaxbert.core.files import whole_file
from flaxbert.errors import ConfigError
from flaxbert.planning.calibration import measure_cpu
from flaxbert.planning.chips import CHIPS, Chip
from flaxbert.planning.planner import MeshPlan, Planner
from flaxbert.planning.report import header_text, plan_document, plan_text, ranking_text, run_text
from flaxbert.planning.topology import Topology, parse_topology, prepare_process
from flaxbert.planning.workloads import finetuning_workload, pretraining_workloads
from flaxbert.train.memory import cut_alike


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """What is to be planned.

    Attributes:
      topology: Name of the devices.
      meshes: Meshes to plan; empty takes the run's own.
      batches_per_device: Examples of a micro batch on each device; empty takes the batch of the run.
      search: Whether to rank meshes instead.
      largest: Whether to look for the largest batch that fits.
      max_compiles: Most pairs of mesh and batch of a search.
      vocab_size: Entries of the vocabulary of a new model; 0 takes the family's.
      json: File that everything is written to as JSON; empty for none.
    """

    topology: str
    meshes: Sequence[MeshConfig] = ()
    batches_per_device: Sequence[int] = ()
    search: bool = False
    largest: bool = True
    max_compiles: int = 24
    vocab_size: int = 0
    json: str = ""

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.batches_per_device):
            raise ConfigError(f"batches_per_device is {list(self.batches_per_device)}, but every batch is at least 1.")
        if self.vocab_size < 0 or self.max_compiles < 1:
            raise ConfigError(
                f"vocab_size is {self.vocab_size} and max_compiles {self.max_compiles}; the first must not be negative, the second at least 1."
            )
        if self.search and self.meshes:
            raise ConfigError("search chooses the meshes itself; leave meshes empty, or search out.")


def find_chip(topology: Topology) -> Chip:
    """Returns the peaks of the devices of a topology; those of this machine's CPU are measured.

    Args:
      topology: The topology.
    """
    return measure_cpu(topology.num_devices) if topology.platform == "cpu" else CHIPS[topology.kind]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def make_plans(planners: Sequence[Planner], request: PlanRequest, own_mesh: MeshConfig) -> list[list[MeshPlan]]:
    """Plans what was asked for.

    Args:
      planners: One for each phase of the run.
      request: What is asked for.
      own_mesh: The mesh of the run.

    Returns:
      The plans of each phase, ranked where a search was asked for.

    Raises:
      FlaxbertError: A mesh or batch does not suit devices or model.
    """
    if request.search:
        rows = request.batches_per_device or (8, 16, 32)
        return [planner.search(rows, request.max_compiles) for planner in planners]
    plans: list[list[MeshPlan]] = [[] for _ in planners]
    for mesh, rows in itertools.product(request.meshes or (own_mesh,), request.batches_per_device or (0,)):
        cuts = [planner.batch_plan(mesh, rows) for planner in planners]
        if not rows and planners[0].workload.train.finds_micro_batch:
            cuts = cut_alike(cuts)
        for found, planner, cut in zip(plans, planners, cuts, strict=True):
            found.append(planner.plan(mesh, cut, find_largest=request.largest))
    return plans


def run_plan(config: PretrainConfig | RunConfig, request: PlanRequest) -> list[MeshPlan]:
    """Plans a run and prints what was found; progress goes to standard error.

    Args:
      config: The run.
      request: What is asked for.

    Returns:
      The plans, in the order printed, phase after phase.

    Raises:
      FlaxbertError: The topology is not known, its compiler is missing, or run, mesh and batch do not fit together.
    """
    topology = parse_topology(request.topology)
    prepare_process(topology)
    from flaxbert.core.runtime import configure

    configure(use_compilation_cache=False)
    if isinstance(config, PretrainConfig):
        workloads = pretraining_workloads(config, request.vocab_size)
    else:
        workloads = [finetuning_workload(config)]
    chip = find_chip(topology)
    planners = [Planner(workload, topology, chip, _tell) for workload in workloads]
    found = list(zip(workloads, make_plans(planners, request, config.mesh), strict=True))
    print(header_text(workloads, topology, chip))
    for workload, plans in found:
        if len(workloads) > 1:
            print(f"Rows of {workload.length}:")
        if len(plans) > 1 or request.search:
            print(ranking_text(plans), end="")
        if not request.search:
            for plan in plans:
                print(plan_text(plan), end="")
    if not request.search:
        for phases in zip(*(plans for _, plans in found), strict=True):
            print(run_text(phases), end="")
    if request.json:
        text = json.dumps(plan_document(topology, chip, found), indent=1)
        with whole_file(request.json) as place:
            place.write_text(f"{text}\n", "utf-8")
    return [plan for _, plans in found for plan in plans]
