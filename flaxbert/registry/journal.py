"""The journal of a model: numbered files, each with the digest of the one before it, that appear whole and never change.

Whoever wants to change something reads the journal to its end, checks what it wants against that state, and creates the file with the next number. Where
another one was faster, it reads on and checks again: so every change was right in the state that it was made in, without any lock.
"""

import datetime
import getpass
import hashlib
import json
import random
import time
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


class Journal:
    """The journal of one model.

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
        self._state = ModelState(name)
        self._last = ""

    def read(self) -> ModelState:
        """Returns the state at the end of the journal; only what is new since the last call is read.

        Raises:
          DataError: An event is damaged, missing, or was changed.
        """
        while True:
            number = len(self._state.events) + 1
            content = self._storage.read(self._file(number))
            if content is None:
                return self._state
            event = self._decode(number, content)
            try:
                self._state = self._state.after(event)
            except (TypeError, KeyError, ValueError) as error:
                raise DataError(
                    f"Event {number} of the journal of {self._state.name} makes no sense: {error}."
                ) from error
            self._last = hashlib.sha256(content).hexdigest()

    def check(self) -> None:
        """Reads the whole journal anew and looks for events after a gap.

        Raises:
          DataError: An event is damaged, missing, or was changed.
        """
        fresh = Journal(self._storage, self._state.name, self._clock)
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
          FlaxbertError: Whatever the change raises.
        """
        for _ in range(_MOST_TRIES):
            state = self.read()
            wanted = change(state)
            if wanted is None:
                return state
            number = len(state.events) + 1
            if self._storage.create(self._file(number), self._encode(number, *wanted)):
                return self.read()
            time.sleep(random.uniform(0.0, _LONGEST_PAUSE_SECONDS / 10))
        raise DataError(f"Other writers changed {self._state.name} {_MOST_TRIES} times in a row; try again.")

    def _file(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"

    def _encode(self, number: int, action: str, details: Mapping[str, Any]) -> bytes:
        try:
            by = getpass.getuser()
        except (OSError, KeyError):
            by = "unknown"
        document = {
            "format_version": FORMAT_VERSION,
            "number": number,
            "previous": self._last,
            "time": self._clock().isoformat(timespec="milliseconds"),
            "by": by,
            "action": action,
            "details": details,
        }
        return json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"

    def _decode(self, number: int, content: bytes) -> Event:
        where = f"Event {number} of the journal of {self._state.name}"
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
        if event.number != number or previous != self._last:
            raise DataError(f"{where} does not follow the one before it: an event was changed, taken out or put in.")
        return event
