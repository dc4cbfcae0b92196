"""The walk over a program: loops, hiding of collectives, what bounds an operation."""

import numpy as np
import pytest

from flaxbert.core.hlo import parse_module
from flaxbert.planning.chips import CHIPS
from flaxbert.planning.links import Interconnect
from flaxbert.planning.roofline import activation_gathers, estimate_step

V5E = CHIPS["v5e"]
SIZE = 4096
PRODUCT_SECONDS = 2 * SIZE**3 / V5E.peak_flops


def interconnect(count=16):
    return Interconnect(V5E, np.arange(count)[:, None], np.zeros(count, np.int64), (count,))


def matrix(name, rest):
    return f"  %{name} = bf16[{SIZE},{SIZE}]{{1,0}} {rest}\n"


DOT = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"


def test_a_loop_is_multiplied_out():
    text = (
        "HloModule m\n\n%body (t: (s32[], bf16[8])) -> (s32[], bf16[8]) {\n"
        f"  %t = (s32[], bf16[{SIZE},{SIZE}]{{1,0}}) parameter(0)\n"
        "  %i = s32[] get-tuple-element(%t), index=0\n"
        + matrix("x", "get-tuple-element(%t), index=1")
        + matrix("d", f"dot(%x, %x), {DOT}")
        + f"  ROOT %r = (s32[], bf16[{SIZE},{SIZE}]{{1,0}}) tuple(%i, %d)\n}}\n\n"
        "%cond (t.1: (s32[], bf16[8])) -> pred[] {\n"
        f"  %t.1 = (s32[], bf16[{SIZE},{SIZE}]{{1,0}}) parameter(0)\n"
        "  %j = s32[] get-tuple-element(%t.1), index=0\n  %n = s32[] constant(24)\n"
        "  ROOT %less = pred[] compare(%j, %n), direction=LT\n}\n\n"
        "ENTRY %main (a: bf16[8]) -> bf16[8] {\n"
        + matrix("a", "parameter(0)")
        + "  %zero = s32[] constant(0)\n"
        + f"  %s = (s32[], bf16[{SIZE},{SIZE}]{{1,0}}) tuple(%zero, %a)\n"
        + f"  %w = (s32[], bf16[{SIZE},{SIZE}]{{1,0}}) while(%s), condition=%cond, body=%body\n"
        + "  ROOT "
        + matrix("out", "get-tuple-element(%w), index=1").strip()
        + "\n}\n"
    )
    found = estimate_step(parse_module(text), interconnect())
    assert found.total_flops == 24 * 2 * SIZE**3
    assert found.seconds == pytest.approx(24 * PRODUCT_SECONDS)
    assert found.matmul_seconds == pytest.approx(found.seconds)


def with_gather(between, gather_size=SIZE):
    shape, shard = f"bf16[{gather_size},{SIZE}]{{1,0}}", f"bf16[{gather_size // 16},{SIZE}]{{1,0}}"
    groups = "replica_groups=[1,16]<=[16], dimensions={0}"
    start = f"  %start = ({shard}, {shape}) all-gather-start(%b), {groups}\n"
    done = f"  %done = {shape} all-gather-done(%start)\n"
    dot = matrix("d", f"dot(%a, %a), {DOT}")
    middle = start + dot + done if between else start + done + dot
    return parse_module(
        "HloModule m\n\nENTRY %main (a: bf16[8], b: bf16[8]) -> bf16[8] {\n"
        + matrix("a", "parameter(0)")
        + f"  %b = {shard} parameter(1)\n"
        + middle
        + f"  ROOT %out = (bf16[8], {shape}) tuple(%d, %done)\n}}\n"
    )


def test_a_collective_hides_behind_what_stands_between_its_start_and_its_end():
    hidden, open_ = (estimate_step(with_gather(between), interconnect()) for between in (True, False))
    gather = hidden.collectives["all-gather", "ici"]
    assert gather.count == 1
    assert gather.size_bytes == 2 * SIZE * SIZE
    assert gather.seconds == pytest.approx(15 / 16 * 2 * SIZE * SIZE / (2 * V5E.link_bandwidth), rel=0.05)
    assert gather.exposed_seconds == pytest.approx(0.0)
    assert hidden.seconds == pytest.approx(PRODUCT_SECONDS)
    assert open_.seconds == pytest.approx(PRODUCT_SECONDS + gather.seconds)
    assert open_.exposed_seconds == pytest.approx(gather.seconds)


def test_an_all_reduce_that_keeps_its_part_is_a_reduce_scatter():
    text = (
        "HloModule m\n\n%add (x: f32[], y: f32[]) -> f32[] {\n  %x = f32[] parameter(0)\n  %y = f32[] parameter(1)\n"
        "  ROOT %sum = f32[] add(%x, %y)\n}\n\n"
        "%all-reduce-scatter (p: f32[1600]) -> f32[100] {\n  %p = f32[1600]{0} parameter(0)\n"
        "  %whole = f32[1600]{0} all-reduce(%p), replica_groups=[1,16]<=[16], to_apply=%add\n"
        "  %i = s32[] constant(0)\n  ROOT %part = f32[100]{0} dynamic-slice(%whole, %i), dynamic_slice_sizes={100}\n}\n\n"
        "ENTRY %main (a: f32[1600]) -> f32[100] {\n  %a = f32[1600]{0} parameter(0)\n"
        "  ROOT %f = f32[100]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter\n}\n"
    )
    found = estimate_step(parse_module(text), interconnect())
    assert set(found.collectives) == {("reduce-scatter", "ici")}
    assert found.collectives["reduce-scatter", "ici"].size_bytes == 6400


def test_what_moves_more_than_it_computes_is_bound_by_memory():
    text = "HloModule m\n\nENTRY %main (a: f32[8]) -> f32[8] {\n  %a = f32[1000000]{0} parameter(0)\n  ROOT %b = f32[1000000]{0} negate(%a)\n}\n"
    found = estimate_step(parse_module(text), interconnect())
    assert found.seconds == found.memory_seconds == pytest.approx(8e6 / V5E.memory_bandwidth)
    assert found.operations == 1e6


def test_an_all_gather_of_hidden_states_is_found_and_one_of_weights_is_not():
    module = with_gather(True, gather_size=32)
    weights = [(24, SIZE, SIZE), (SIZE,)]
    assert activation_gathers(module, interconnect(), weights, 1000) == {"start": (32, SIZE)}
    assert activation_gathers(module, interconnect(), weights, 1 << 20) == {}
    assert activation_gathers(with_gather(True), interconnect(), weights, 1000) == {}


def test_a_collective_that_is_carried_through_computations_counts_once_and_they_count_too():
    shape, shard, groups = (
        f"f32[{SIZE},{SIZE}]{{1,0}}",
        f"f32[{SIZE // 16},{SIZE}]{{1,0}}",
        "channel_id=7, replica_groups=[1,16]<=[16], dimensions={0}",
    )
    gather = f"  %g = {shape} all-gather(%p), {groups}\n"
    dot = f"  ROOT %d = {shape} dot(%a, %a), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}\n"
    text = (
        "HloModule m\n\n"
        f'%begin (p: f32[1]) -> {shape} {{\n  %p = {shard} parameter(0)\n{gather}  ROOT %c = {shape} custom-call(%g), custom_call_target="x"\n}}\n\n'
        f"%async_collective_fusion.1 (p: f32[1], a: f32[1]) -> {shape} {{\n  %p = {shard} parameter(0)\n  %a = {shape} parameter(1)\n{gather}{dot}}}\n\n"
        f'%finish (p: f32[1]) -> {shape} {{\n  %p = {shard} parameter(0)\n{gather}  ROOT %c = {shape} custom-call(%g), custom_call_target="x"\n}}\n\n'
        f"ENTRY %main (x: f32[1], y: f32[1]) -> {shape} {{\n  %x = {shard} parameter(0)\n  %y = {shape} parameter(1)\n"
        f"  %async-collective-start = {shape} fusion(%x), kind=kCustom, calls=%begin\n"
        f"  %fusion.1 = {shape} fusion(%x, %y), kind=kOutput, calls=%async_collective_fusion.1\n"
        f"  %fusion.2 = {shape} fusion(%x, %y), kind=kOutput, calls=%async_collective_fusion.1\n"
        f"  ROOT %async-collective-done = {shape} fusion(%x), kind=kCustom, calls=%finish\n}}\n"
    )
    found = estimate_step(parse_module(text), interconnect())
    (moved,) = found.collectives.values()
    assert moved.count == 1
    assert found.total_flops == 2 * 2 * SIZE**3
    assert moved.exposed_seconds < moved.seconds
