"""One process of a fine-tuning run, alone or one of several; ends with 143 where the run was asked to stop and saved.

Arguments: the config as JSON; number of processes; number of this process; address of process 0; and, to disturb it, a signal and
the step after which this process sends it to itself.
"""

import json
import os
import signal
import sys

from flaxbert.config import DataConfig, MeshConfig, ModelSource, OutputConfig, RunConfig, TrainConfig
from flaxbert.core.runtime import configure
from flaxbert.train.callbacks import CallbackBase
from flaxbert.train.recipes.finetune import finetune


class SignalAt(CallbackBase):
    """Sends a signal to this process after a step."""

    def __init__(self, name: str, step: int) -> None:
        self.number, self.step = signal.Signals[name], step

    def on_log(self, step: int, metrics: object) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


def main() -> int:
    settings = json.loads(sys.argv[1])
    num_processes, process_id, address = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    mesh = settings.pop("mesh", {})
    if num_processes > 1:
        mesh |= {"coordinator": address, "num_processes": num_processes, "process_id": process_id}
    configure()
    config = RunConfig(
        model=ModelSource(**settings["model"]),
        data=DataConfig(**{**settings["data"], "length_buckets": tuple(settings["data"]["length_buckets"])}),
        train=TrainConfig(**settings["train"]),
        mesh=MeshConfig(**mesh),
        output=OutputConfig(**settings["output"]),
    )
    disturbing = [SignalAt(sys.argv[5], int(sys.argv[6]))] if len(sys.argv) > 5 else []
    result = finetune(config, extra_callbacks=disturbing)
    return 143 if result.reason == "preempted" else 0


if __name__ == "__main__":
    sys.exit(main())
