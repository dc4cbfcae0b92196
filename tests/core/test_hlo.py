"""The reader of optimised HLO."""

import jax
import jax.numpy as jnp
import pytest

from flaxbert.core.hlo import HloError, parse_arrays, parse_module

LOOP = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%body (p.0: (s32[], /*index=1*/f32[4])) -> (s32[], f32[4]) {
  %p.0 = (s32[], /*index=1*/f32[4]{0:T(128)S(1)}) parameter(0)
  %one = s32[] constant(1)
  %count = s32[] get-tuple-element(%p.0), index=0
  %next = s32[] add(%count, %one)
  %values = f32[4]{0} get-tuple-element(%p.0), index=1
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, %values)
}

%condition (p.1: (s32[], f32[4])) -> pred[] {
  %p.1 = (s32[], f32[4]{0}) parameter(0)
  %bound = s32[] constant(7)
  %index = s32[] get-tuple-element(%p.1), index=0
  ROOT %less = pred[] compare(%index, %bound), direction=LT
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0), metadata={op_name="x"}
  %zero = s32[] constant(0)
  %start = (s32[], f32[4]{0}) tuple(%zero, %x)
  %loop = (s32[], f32[4]{0}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


def test_types_are_taken_apart():
    near, far = parse_arrays("(bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/s4[3,1])")
    assert (near.dtype, near.dimensions, near.near, near.size_bytes, near.far_bytes) == ("bf16", (8, 4), True, 64, 0)
    assert (far.size_bytes, far.far_bytes) == (2, 2)
    assert parse_arrays("f32[]")[0].size == 1
    assert parse_arrays("token[]")[0].size_bytes == 0


def test_a_loop_runs_as_often_as_its_condition_says_or_the_compiler_knows():
    module = parse_module(LOOP)
    loop = module.computations[module.entry].by_name["loop"]
    assert loop.called == ("body",)
    assert loop.operands == ("start",)
    assert module.trips(loop) == 7
    known = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"24"}}')
    module = parse_module(known)
    assert module.trips(module.computations[module.entry].by_name["loop"]) == 24
    two = LOOP.replace("%index = s32", "%other = s32[] constant(9)\n  %index = s32")
    module = parse_module(two)
    with pytest.raises(HloError, match="loop"):
        module.trips(module.computations[module.entry].by_name["loop"])


def test_users_parameters_and_roots_are_known():
    module = parse_module(LOOP)
    body = module.computations["body"]
    assert body.root == "out"
    assert [user.name for user in body.users["next"]] == ["out"]
    assert [parameter.name for parameter in body.parameters()] == ["p.0"]


@pytest.mark.parametrize("text", ["", "HloModule empty\n", "no program at all {\n}\n"])
def test_what_is_no_program_is_said(text):
    with pytest.raises(HloError, match="entry"):
        parse_module(text)


def test_what_this_compiler_prints_is_read():
    def run(values):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ x), values)

    compiled = jax.jit(run).lower(jax.ShapeDtypeStruct((16, 16), jnp.float32)).compile()
    module = parse_module(compiled.as_text())
    loops = [i for c in module.computations.values() for i in c.instructions if i.opcode == "while"]
    assert [module.trips(loop) for loop in loops] == [5]
