"""Collectives read from the text of compiled programs."""

import functools

import jax
import jax.numpy as jnp
import pytest

from flaxbert.config import MeshConfig
from flaxbert.core.collectives import Collective, collective_kind, find_collectives, first_group, summarise
from flaxbert.core.hlo import ArrayShape, parse_module
from flaxbert.core.sharding import build_mesh

TEXT = """HloModule jit_step, is_scheduled=true

ENTRY %main (x: f32[4]) -> f32[2] {
  %all-reduce.1 = f32[128,64]{1,0} all-reduce(%dot), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %all-reduce.2 = (f32[8]{0}, bf16[4,4]{1,0}) all-reduce(%a, %b), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add
  %all-gather-start = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}
  %all-gather-done = f32[16,8]{1,0} all-gather-done(%all-gather-start)
  %rs = bf16[4,8]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, to_apply=%add
  %ag = f32[6]{0} all-gather(%z), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  %part = f32[6]{0} all-reduce(%z), replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0','axis_1':(1)2}
  %cp = s32[2]{0} collective-permute(%y), source_target_pairs={{0,1},{1,0}}
  %cps = (s32[3]{0}, s32[3]{0}, u32[], u32[]) collective-permute-start(%y), source_target_pairs={{0,1},{1,0}}
  %alone = f32[5]{0} all-reduce(%y), replica_groups={{0},{1}}, to_apply=%add
  ROOT %fusion = f32[2]{0} fusion(%all-reduce.1), kind=kLoop, calls=%all-reduce-like
}
"""


def test_every_form_is_read():
    found = find_collectives(TEXT)
    f32, bf16 = functools.partial(ArrayShape, "f32"), functools.partial(ArrayShape, "bf16")
    assert found == [
        Collective("all-reduce", (f32((128, 64)),), 2),
        Collective("all-reduce", (f32((8,)), bf16((4, 4))), 4),
        Collective("all-gather", (f32((16, 8)),), 8),
        Collective("reduce-scatter", (bf16((4, 8)),), 4),
        Collective("all-gather", (f32((6,)),), 4),
        Collective("all-reduce", (f32((6,)),), 4),
        Collective("collective-permute", (ArrayShape("s32", (2,)),), 2),
        Collective("collective-permute", (ArrayShape("s32", (3,)),), 2),
    ]
    assert [collective.size_bytes for collective in found] == [128 * 64 * 4, 64, 512, 256, 24, 24, 8, 12]
    assert summarise(found) == {
        "all-gather": (2, 536),
        "all-reduce": (3, 128 * 64 * 4 + 88),
        "reduce-scatter": (1, 256),
        "collective-permute": (2, 20),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}, channel_id=1", (0, 2)),
        ("channel_id=1, replica_groups=[2,4]<=[8], use_global_device_ids=true", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=[4,4]<=[2,2,4]T(1,0,2), dimensions={0}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b':(2)2}", (0, 1, 4, 5)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, x", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}, x", (0, 1)),
        ("source_target_pairs={{0,1},{1,2}}, x", (0, 1)),
        ("replica_groups={}", None),
    ],
)
def test_groups_are_read(text, expected):
    assert first_group(text) == expected


@pytest.mark.parametrize(
    ("axes", "expected"), [("data", (0, 4)), ("tensor", (0, 1, 2, 3)), (("data", "tensor"), tuple(range(8)))]
)
def test_groups_are_those_that_jax_asked_for(axes, expected):
    mesh = build_mesh(MeshConfig(data=2, tensor=4))
    summed = jax.jit(
        jax.shard_map(
            lambda part: jax.lax.psum(part, axes),
            mesh=mesh,
            in_specs=jax.P(("data", "tensor")),
            out_specs=jax.P(),
            check_vma=False,
        )
    )
    text = summed.lower(jax.ShapeDtypeStruct((8, 3), jnp.float32)).compile().as_text()
    (instruction,) = [
        instruction
        for computation in parse_module(text).computations.values()
        for instruction in computation.instructions
        if collective_kind(instruction)
    ]
    assert first_group(instruction.text) == expected


def test_a_program_s_own_collective_is_found():
    mesh = build_mesh(MeshConfig(data=2, tensor=4))
    by_column = jax.NamedSharding(mesh, jax.P(None, "tensor"))
    with jax.set_mesh(mesh):
        whole = jax.jit(
            lambda array: jnp.sum(array, axis=1), in_shardings=by_column, out_shardings=jax.NamedSharding(mesh, jax.P())
        )
        found = find_collectives(whole.lower(jax.ShapeDtypeStruct((3, 8), jnp.float32)).compile().as_text())
    assert found == [Collective("all-reduce", (ArrayShape("f32", (3,)),), 4)]
