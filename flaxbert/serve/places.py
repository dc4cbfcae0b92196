"""The places of requests: how many there are, and the turns of those that wait for one."""

import asyncio
import collections
import contextlib
from collections.abc import Callable, Iterator

PATIENT_SHARE = 0.5
"""Share of the places that those who wait for one may fill. The rest is for requests that would be refused where there is none, so that bulk work does not shut out others."""


class Places:
    """Counts requests; of one event loop.

    Args:
      number: How many there may be.
      changed: Is told how many there are.
    """

    def __init__(self, number: int, changed: Callable[[int], None] = lambda number: None) -> None:
        self.num_taken = 0
        self._number = number
        self._for_patient = max(1, int(number * PATIENT_SHARE))
        self._changed = changed
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    @property
    def full(self) -> bool:
        """Whether no request more may come."""
        return self.num_taken >= self._number

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Holds a place while the block runs.

        Yields:
          Nothing.
        """
        self.num_taken += 1
        self._changed(self.num_taken)
        try:
            yield
        finally:
            self.num_taken -= 1
            self._changed(self.num_taken)
            self._wake()

    async def wait(self) -> None:
        """Waits until a place is there for one that waits; it has to be taken before anything else is awaited."""
        came_back = False
        while self.num_taken >= self._for_patient:
            turn = asyncio.get_running_loop().create_future()
            (self._waiting.appendleft if came_back else self._waiting.append)(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:  # its turn had come; it is another's now
                    self._wake()
                raise
            came_back = True

    def _wake(self) -> None:
        if self._waiting and self.num_taken < self._for_patient:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
