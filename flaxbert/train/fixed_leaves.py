"""Arrays that a step reads beside its state: no gradients, no optimizer state, part of no checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from flaxbert.core.sharding import param_shardings, shard
from flaxbert.core.trees import flatten_parts, leaf_kinds, unflatten_parts


@dataclasses.dataclass(frozen=True, eq=False)
class FixedLeaves:
    """A tree that is handed to every call of a step, for example a teacher's parameters.

    Inside of the step its leaves stand in the parameter tree beside those of the state. Being arguments they are no constants of
    the compiled program, and since the step does not return them they are neither copied nor saved.

    Attributes:
      arrays: Stored arrays by ``name`` or ``name@part``, on the mesh; or their shapes.
      kinds: Kinds of typed leaves.
      shardings: How each array is split.
    """

    arrays: Mapping[str, Any]
    kinds: Mapping[str, str]
    shardings: Mapping[str, NamedSharding]

    @classmethod
    def place(cls, params: Mapping[str, Any], leaf_axes: Mapping[str, Sequence[str]], mesh: Mesh) -> "FixedLeaves":
        """Returns the leaves of a tree on a mesh.

        Args:
          params: The tree; its names must differ from those of the state.
          leaf_axes: Axis names by leaf name.
          mesh: The mesh.

        Raises:
          MeshError: A leaf can not be split over the mesh.
        """
        shardings = param_shardings(params, leaf_axes, mesh)
        return cls(flatten_parts(shard(params, shardings)), leaf_kinds(params), flatten_parts(shardings))

    def shapes(self) -> "FixedLeaves":
        """Returns the same with shapes in place of arrays, for compiling."""
        arrays = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=self.shardings[name])
            for name, array in self.arrays.items()
        }
        return dataclasses.replace(self, arrays=arrays)

    def tree(self) -> dict[str, Any]:
        """Returns the nested tree."""
        return unflatten_parts(self.arrays, self.kinds)

    def join(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a step that takes the arrays as its last argument.

        Args:
          step: ``(state, batch, key) -> (state, metrics)`` that expects the arrays among the frozen ones of the state.
        """

        def run(state: Any, batch: Any, key: Any, arrays: Mapping[str, Any]) -> tuple[Any, Any]:
            joined, metrics = step(state.replace(frozen={**state.frozen, **arrays}), batch, key)
            own = {name: array for name, array in joined.frozen.items() if name not in arrays}
            return joined.replace(frozen=own), metrics

        return run


@dataclasses.dataclass(frozen=True, eq=False)
class StepWithFixed:
    """A compiled step together with what it reads beside its state.

    Attributes:
      step: From ``jax.jit`` of what ``FixedLeaves.join`` returns.
      fixed: The leaves.
    """

    step: Any
    fixed: FixedLeaves

    def __call__(self, state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        """Takes a step."""
        return self.step(state, batch, key, self.fixed.arrays)

    def lower(self, state: Any, batch: Any, key: Any) -> Any:
        """Returns the step, lowered for arguments of these shapes.

        Args:
          state: State or its shapes.
          batch: Batch or its shapes.
          key: Key or its shape.
        """
        return self.step.lower(state, batch, key, self.fixed.shapes().arrays)
