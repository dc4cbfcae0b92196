"""Which of several failures the user is told. Ray is not needed."""

import types

from flaxbert.cluster.training import describe_failures, explain_failure
from flaxbert.errors import DataError, MeshError


class ActorDiedError(Exception):
    """Has the name of Ray's."""


def test_the_error_of_the_one_worker_comes_before_those_of_the_others():
    failures = {
        0: RuntimeError("Traceback\n  gloo\nConnection closed by peer"),
        1: DataError("x.txt, line 3: no text."),
        2: ActorDiedError("died"),
    }
    assert describe_failures(failures, 3) == "Worker 1 of 3 failed: x.txt, line 3: no text. (2 others failed with it)"
    del failures[1]
    assert describe_failures(failures, 3) == "Worker 2 of 3 failed: ActorDiedError: died (1 other failed with it)"
    assert describe_failures({0: failures[0]}, 3) == "Worker 0 of 3 failed: RuntimeError: Connection closed by peer"
    assert describe_failures({0: MeshError("a"), 1: DataError("b")}, 2).startswith("Worker 1 of 2 failed: b")


def test_an_error_of_the_controller_is_told_too():
    error = types.SimpleNamespace(controller_failure=ValueError("no storage"))
    assert explain_failure(error, 2) == "Ray Train ended the run: no storage"
    assert explain_failure(types.SimpleNamespace(worker_failures={1: DataError("b")}), 2).startswith("Worker 1 of 2")
