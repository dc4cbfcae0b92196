"""The journal of a model: numbered files, each with the digest of the one before it, that appear whole and never change.

Whoever wants to change something reads the journal to its end, checks what it wants against that state, and creates the file with the next number. Where
another one was faster, it reads on and checks again: so every change was right in the state that it was made in, without any lock.
"""

import dataclasses
import datetime
import getpass
import hashlib
import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from flaxbert.errors import DataError
from flaxbert.registry.state import Event, ModelState
from flaxbert.registry.storage import Storage

FORMAT_VERSION = 1
_MOST_TRIES = 200
_LONGEST_PAUSE_SECONDS = 0.25

Change = Callable[[ModelState], tuple[str, Mapping[str, Any]] | None]
"""Given a state: what is to happen and its details, or None for nothing; raises where it may not."""


@dataclasses.dataclass(frozen=True)
class _End:
    """The state after the last event that was read, and the digest of that event; empty before the first."""

    state: ModelState
    digest: str


class Journal:
    """The journal of one model; threads may share it.

    Args:
      storage: Where the registry lies.
      name: The model; a checked name.
      clock: Returns the time, in UTC.
    """

    def __init__(
        self,
        storage: Storage,
        name: str,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._storage = storage
        self._folder = f"{name}/journal"
        self._clock = clock
        self._name = name
        self._end = _End(ModelState(name), "")
        self._reading = threading.Lock()

    def read(self) -> ModelState:
        """Returns the state at the end of the journal; only the last event known and what is new since the last call are read.

        Raises:
          DataError: An event is damaged, missing, or was changed.
          RegistryError: The registry can not be reached or read.
        """
        return self._read().state

    def _read(self) -> "_End":
        with self._reading:
            known = len(self._end.state.events)
            content = self._storage.read(self._file(known)) if known else None
            if content is None or hashlib.sha256(content).hexdigest() != self._end.digest:
                self._end = _End(ModelState(self._name), "")  # the first call, or another registry lies here now
            ahead = {} if self._storage.is_local or self._end.digest else self._storage.read_all(self._folder)
            while True:
                file = self._file(len(self._end.state.events) + 1)
                content = ahead.get(file.rpartition("/")[2]) or self._storage.read(file)
                if content is None:
                    return self._end
                self._end = self._after(self._end, content)

    def _after(self, end: "_End", content: bytes) -> "_End":
        number = len(end.state.events) + 1
        event = self._decode(number, end.digest, content)
        try:
            state = end.state.after(event)
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(f"Event {number} of the journal of {self._name} makes no sense: {error}.") from error
        return _End(state, hashlib.sha256(content).hexdigest())

    def check(self) -> None:
        """Reads the whole journal anew and looks for events after a gap.

        Raises:
          DataError: An event is damaged, missing, or was changed.
        """
        fresh = Journal(self._storage, self._name, self._clock)
        state = fresh.read()
        expected = {f"{number:08d}.json" for number in range(1, len(state.events) + 1)}
        beyond = sorted(
            name for name in self._storage.names(self._folder) if not name.startswith(".") and name not in expected
        )
        if beyond:
            raise DataError(
                f"The journal of {state.name} goes on with {beyond[0]} after event {len(state.events)}: events are missing."
            )

    def append(self, change: Change) -> ModelState:
        """Makes something happen.

        Args:
          change: What, given the state that it happens in; called again where another writer was faster.

        Returns:
          The state afterwards.

        Raises:
          DataError: The journal is damaged, or others write without end.
          RegistryError: The registry can not be reached or written; it may have happened nevertheless.
          FlaxbertError: Whatever the change raises.
        """
        for _ in range(_MOST_TRIES):
            end = self._read()
            wanted = change(end.state)
            if wanted is None:
                return end.state
            number = len(end.state.events) + 1
            file, content = self._file(number), self._encode(number, end.digest, *wanted)
            # A library that repeats an upload whose answer was lost finds its own file there.
            if self._storage.create(file, content) or self._storage.read(file) == content:
                return self.read()
            time.sleep(random.uniform(0.0, _LONGEST_PAUSE_SECONDS / 10))
        raise DataError(f"Other writers changed {self._name} {_MOST_TRIES} times in a row; try again.")

    def _file(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"

    def _encode(self, number: int, previous: str, action: str, details: Mapping[str, Any]) -> bytes:
        try:
            by = getpass.getuser()
        except (OSError, KeyError):
            by = "unknown"
        document = {
            "format_version": FORMAT_VERSION,
            "number": number,
            "id": uuid.uuid4().hex,  # two writers may want the same in the same moment
            "previous": previous,
            "time": self._clock().isoformat(timespec="milliseconds"),
            "by": by,
            "action": action,
            "details": details,
        }
        return json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"

    def _decode(self, number: int, last: str, content: bytes) -> Event:
        where = f"Event {number} of the journal of {self._name}"
        try:
            document = json.loads(content)
            version, previous = document["format_version"], document["previous"]
            event = Event(document["number"], document["time"], document["by"], document["action"], document["details"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{where} is damaged ({type(error).__name__}: {error}).") from error
        if version != FORMAT_VERSION:
            raise DataError(
                f"{where} has format {version}, but this version of flaxbert reads format {FORMAT_VERSION}."
            )
        if event.number != number or previous != last:
            raise DataError(f"{where} does not follow the one before it: an event was changed, taken out or put in.")
        return event
