"""What the tests of whole runs share: a few examples, and a run that is stopped."""

import os
import pathlib
import signal

from flaxbert.train.callbacks import CallbackBase

TEXTS = ("a fine film", "the film was bad", "fine films", "bad .", "the fine", "a bad film .")
LABELS = ("good", "bad", "good", "bad", "good", "bad")


class StopAt(CallbackBase):
    """Sends SIGTERM to this process once, after a step."""

    def __init__(self, step):
        self.step = step

    def on_log(self, step, metrics):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def write_examples(folder: pathlib.Path) -> pathlib.Path:
    """Writes 48 labelled examples."""
    rows = [f"{TEXTS[i % 6]}\t{LABELS[i % 6]}" for i in range(48)]
    file = folder / "train.tsv"
    file.write_text("text\tlabel\n" + "\n".join(rows) + "\n", "utf-8")
    return file
