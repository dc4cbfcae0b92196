"""The models that a server has, and how a new version takes the place of the old one while requests come in."""

import asyncio
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Sequence

from flaxbert.config import RolloutConfig
from flaxbert.core.runtime import host_memory_limit_bytes, release_memory
from flaxbert.errors import ConfigError, FlaxbertError, RegistryError, nearest
from flaxbert.registry import ModelState
from flaxbert.serve.errors import RequestError
from flaxbert.serve.loading import (
    EngineOptions,
    Located,
    ModelSpec,
    Served,
    load_served,
    locate,
    open_registry,
    reference_of,
)
from flaxbert.serve.service import Service

_LOG = logging.getLogger("flaxbert.serve")

CHAMPION, CANARY, SHADOW = "champion", "canary", "shadow"
"""Roles of versions: most requests, a share of them, the same requests without answers."""

LOAD_FACTOR = 2.0
"""Memory of a version while it is loaded, in sizes of its weights."""

_DRAIN_STEP_SECONDS = 0.05


@dataclasses.dataclass(eq=False)
class Slot:
    """One name that clients call, and the versions behind it.

    Attributes:
      spec: What it serves.
      versions: The version of each role that is there.
      lock: Held while versions are exchanged.
      failed: Version by role that could not be loaded, so that it is not tried again and again.
    """

    spec: ModelSpec
    versions: dict[str, Served] = dataclasses.field(default_factory=dict)
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


class Fleet:
    """The models of a server.

    Args:
      specs: What is served.
      options: How it is run.
      rollout: How versions change.
      service: What computes.
    """

    def __init__(
        self, specs: Sequence[ModelSpec], options: EngineOptions, rollout: RolloutConfig, service: Service
    ) -> None:
        self.slots = {spec.name: Slot(spec) for spec in specs}
        self.rollout = rollout
        self._options = options
        self._service = service
        self._leaving: set[asyncio.Task[None]] = set()
        limit = rollout.memory_limit_mb * 1e6
        self._memory_limit = limit or 0.8 * host_memory_limit_bytes()
        self._loads = asyncio.Lock()
        for name in self.slots:  # counters that begin at 0, so that the first failure is an increase
            for outcome in ("swapped", "failed"):
                service.metrics.swaps.labels(name, outcome)

    @property
    def default(self) -> Slot:
        """What requests get that name no model."""
        return next(iter(self.slots.values()))

    def find(self, name: str | None, suits: Callable[[Served], bool] = lambda served: True) -> Slot:
        """Returns the model of a name; without one the first that suits.

        Args:
          name: What the client calls it, or None.
          suits: What a model must be able to do.

        Raises:
          RequestError: There is none.
        """
        if name:
            slot = self.slots.get(name)
            if slot is None:
                raise RequestError("not_found", f"There is no model '{name}' here.{nearest(name, self.slots)}")
            return slot
        ready = [slot for slot in self.slots.values() if CHAMPION in slot.versions]
        return next((slot for slot in ready if suits(slot.versions[CHAMPION])), self.default)

    def choose(self, slot: Slot, request_id: str) -> Served:
        """Returns the version that answers a request; the same for the same id.

        Args:
          slot: The model.
          request_id: Id of the request.

        Raises:
          RequestError: No version is loaded yet.
        """
        if CHAMPION not in slot.versions:
            raise RequestError("unhealthy", f"The model '{slot.spec.name}' is not loaded yet.", 1.0)
        canary = slot.versions.get(CANARY)
        if canary is not None and self.rollout.canary_percent:
            place = int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=4).digest()) / 2**32
            if place * 100.0 < self.rollout.canary_percent:
                return canary
        return slot.versions[CHAMPION]

    @property
    def ready(self) -> bool:
        """Whether every model can answer."""
        return all(CHAMPION in slot.versions for slot in self.slots.values())

    def aliases(self) -> dict[str, str]:
        """Returns the roles that are filled from the registry, with the alias of each; empty for the one of the command line."""
        found = {CHAMPION: ""}
        if self.rollout.canary_percent:
            found[CANARY] = self.rollout.canary_alias
        if self.rollout.shadow_alias:
            found[SHADOW] = self.rollout.shadow_alias
        return found

    async def load_all(self) -> None:
        """Loads everything that was named on the command line.

        Raises:
          FlaxbertError: A model can not be served.
        """
        for slot in self.slots.values():
            await self._exchange(slot, CHAMPION, await self._locate(slot, ""))
            if slot.spec.from_registry:
                await self.refresh_safely(slot)

    async def _locate(self, slot: Slot, alias: str) -> Located:
        return await self._service.in_thread(functools.partial(locate, slot.spec, alias))

    async def refresh(self, slot: Slot) -> None:
        """Brings the versions of a model to where its aliases stand now. What can not be loaded leaves the old one in place.

        Args:
          slot: The model.

        Raises:
          RegistryError: The registry can not be reached; all versions stay, and the next call tries again.
        """
        async with slot.lock:
            try:
                state = await self._service.in_thread(lambda: open_registry().state(reference_of(slot.spec).name))
            except ConfigError as error:  # no such model, which says nothing of its aliases
                _LOG.error("%s: %s", slot.spec.name, error)
                return
            for role, alias in self.aliases().items():
                await self._refresh_role(slot, role, alias, state)

    async def _refresh_role(self, slot: Slot, role: str, alias: str, state: ModelState) -> None:
        try:
            wanted = str(state.find(reference_of(slot.spec, alias)).number)
        except ConfigError as error:
            if role == CHAMPION:
                _LOG.error("%s: %s", slot.spec.name, error)
            elif role in slot.versions:  # the alias was taken away
                self._retire(slot.versions.pop(role))
            return
        current = slot.versions.get(role)
        if (current is not None and current.version == wanted) or slot.failed.get(role) == wanted:
            return
        try:
            await self._exchange(slot, role, await self._locate(slot, alias))
        except RegistryError:  # nothing is wrong with the version: it is tried again
            raise
        except FlaxbertError as error:
            slot.failed[role] = wanted
            self._service.metrics.swaps.labels(slot.spec.name, "failed").inc()
            _LOG.error("%s: version %s did not become %s: %s", slot.spec.name, wanted, role, error)

    async def _exchange(self, slot: Slot, role: str, located: Located) -> None:
        """Loads a version, makes it ready, and only then lets it take the place of the old one."""
        async with self._loads:
            self._require_memory(located)
            served = await asyncio.to_thread(load_served, slot.spec, located, self._options)
        self._service.executor.add(served.key, served.engine, self._service.patience)
        self._service.drift.add(served)
        before = slot.versions.get(role)
        slot.versions[role] = served
        slot.failed.pop(role, None)
        self._service.metrics.version.labels(slot.spec.name, role).set(float(served.version))
        if before is not None:
            self._service.metrics.swaps.labels(slot.spec.name, "swapped").inc()
            self._retire(before)
        _LOG.info("%s: version %s is %s", slot.spec.name, served.version, role)

    def _require_memory(self, located: Located) -> None:
        used = sum(served.size_bytes for slot in self.slots.values() for served in slot.versions.values())
        needed = LOAD_FACTOR * located.size_bytes
        if used + needed > self._memory_limit:
            raise ConfigError(
                f"{located.folder} needs about {needed / 1e6:.0f} MB beside the {used / 1e6:.0f} MB of models that are loaded, but "
                f"rollout.memory_limit_mb allows {self._memory_limit / 1e6:.0f} MB."
            )

    def _retire(self, served: Served) -> None:
        task = asyncio.get_running_loop().create_task(self._leave(served))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, served: Served) -> None:
        """Waits for the last request of a version, and forgets it."""
        while served.num_requests:
            await asyncio.sleep(_DRAIN_STEP_SECONDS)
        self._service.executor.remove(served.key, served.engine)
        self._service.drift.remove(served)
        await asyncio.to_thread(release_memory)

    async def watch(self) -> None:
        """Follows the registry until it is cancelled."""
        while self.rollout.poll_seconds:
            await asyncio.sleep(self.rollout.poll_seconds)
            for slot in self.slots.values():
                if slot.spec.from_registry:
                    await self.refresh_safely(slot)

    async def refresh_safely(self, slot: Slot) -> None:
        """Does what ``refresh`` does; a registry that can not be read is told in the log and asked again by ``watch``.

        Args:
          slot: The model.
        """
        try:
            await self.refresh(slot)
        except (FlaxbertError, OSError) as error:  # the registry can not be read now; the next time it may be
            _LOG.error("%s: the registry could not be read: %s", slot.spec.name, error)
