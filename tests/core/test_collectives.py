"""Collectives read from the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from flaxbert.config import MeshConfig
from flaxbert.core.collectives import Collective, find_collectives, size_of, summarise
from flaxbert.core.sharding import build_mesh

TEXT = """
  %all-reduce.1 = f32[128,64]{1,0} all-reduce(%dot), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %all-reduce.2 = (f32[8]{0}, bf16[4,4]{1,0}) all-reduce(%a, %b), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add
  %all-gather-start = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}
  %all-gather-done = f32[16,8]{1,0} all-gather-done(%all-gather-start)
  %rs = bf16[4,8]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, to_apply=%add
  %ag = f32[6]{0} all-gather(%z), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  %part = f32[6]{0} all-reduce(%z), replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0','axis_1':(1)2}
  %cp = s32[2]{0} collective-permute(%y), source_target_pairs={{0,1},{1,0}}
  %alone = f32[5]{0} all-reduce(%y), replica_groups={{0},{1}}, to_apply=%add
  %fusion = f32[2]{0} fusion(%all-reduce.1), kind=kLoop, calls=%all-reduce-like
"""


def test_every_form_is_read():
    found = find_collectives(TEXT)
    assert found == [
        Collective("all-reduce", (("f32", (128, 64)),), 2),
        Collective("all-reduce", (("f32", (8,)), ("bf16", (4, 4))), 4),
        Collective("all-gather", (("f32", (16, 8)),), 8),
        Collective("reduce-scatter", (("bf16", (4, 8)),), 4),
        Collective("all-gather", (("f32", (6,)),), 4),
        Collective("all-reduce", (("f32", (6,)),), 4),
        Collective("collective-permute", (("s32", (2,)),), 0),
    ]
    assert [collective.size_bytes for collective in found] == [128 * 64 * 4, 64, 512, 256, 24, 24, 8]
    assert summarise(found) == {
        "all-gather": (2, 536),
        "all-reduce": (3, 128 * 64 * 4 + 88),
        "reduce-scatter": (1, 256),
        "collective-permute": (1, 8),
    }


@pytest.mark.parametrize(
    ("name", "size"), [("f32", 4), ("bf16", 2), ("s8", 1), ("pred", 1), ("f8e4m3fn", 1), ("s64", 8), ("s4", 1)]
)
def test_sizes_of_types(name, size):
    assert size_of(name) == size


def test_a_program_s_own_collective_is_found():
    mesh = build_mesh(MeshConfig(data=2, tensor=4))
    by_column = jax.NamedSharding(mesh, jax.P(None, "tensor"))
    with jax.set_mesh(mesh):
        whole = jax.jit(
            lambda array: jnp.sum(array, axis=1), in_shardings=by_column, out_shardings=jax.NamedSharding(mesh, jax.P())
        )
        found = find_collectives(whole.lower(jax.ShapeDtypeStruct((3, 8), jnp.float32)).compile().as_text())
    assert found == [Collective("all-reduce", (("f32", (3,)),), 4)]
