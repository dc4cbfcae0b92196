"""Work of single instructions, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from flaxbert.core.hlo import parse_module
from flaxbert.planning.chips import CHIPS
from flaxbert.planning.operations import Product, convolution_product, dot_product, instruction_work

HEAD = "HloModule m\n\n"


def module_of(*lines, before=""):
    body = "\n".join(f"  {line}" for line in lines)
    return parse_module(f"{HEAD}{before}ENTRY %main (a: f32[2]) -> f32[2] {{\n{body}\n}}\n")


def work_of(module, name):
    main = module.computations[module.entry]
    return instruction_work(main.by_name[name], main, module)


def test_a_dot_counts_batch_rows_inner_and_columns():
    module = module_of(
        "%a = bf16[8,16,32,64]{3,2,1,0} parameter(0)",
        "%b = bf16[8,16,64,48]{3,2,1,0} parameter(1)",
        "ROOT %dot = f32[8,16,32,48]{3,2,1,0} dot(%a, %b), lhs_batch_dims={0,1}, lhs_contracting_dims={3}, "
        "rhs_batch_dims={0,1}, rhs_contracting_dims={2}, operand_precision={highest,highest}",
    )
    main = module.computations[module.entry]
    product = dot_product(main.by_name["dot"], main.by_name["a"].arrays[0], main.by_name["b"].arrays[0])
    assert product == Product(128, 32, 64, 48, "bf16", 6)
    assert product.flops == 2 * 128 * 32 * 64 * 48
    work = work_of(module, "dot")
    assert work.flops == product.flops
    assert work.moved_bytes == 2 * 128 * (32 * 64 + 64 * 48) + 4 * 128 * 32 * 48


def test_a_batched_dot_written_as_a_convolution_counts_what_it_really_multiplies():
    # TPU compilers write a batch axis of size 8 as a window of size 8 with stride 7 over an input dilated by 8.
    module = module_of(
        "%a = bf16[8,32,64]{2,1,0} parameter(0)",
        "%b = bf16[8,64,48]{2,1,0} parameter(1)",
        "ROOT %conv = f32[8,32,48]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf",
    )
    main = module.computations[module.entry]
    arrays = [main.by_name[name].arrays[0] for name in "ab"]
    assert convolution_product(main.by_name["conv"], *arrays).flops == 2 * 8 * 32 * 64 * 48


def test_a_convolution_with_padding_counts_no_padding():
    module = module_of(
        "%a = f32[2,10,4]{2,1,0} parameter(0)",
        "%b = f32[3,4,6]{2,1,0} parameter(1)",
        "ROOT %conv = f32[2,10,6]{2,1,0} convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
    )
    main = module.computations[module.entry]
    arrays = [main.by_name[name].arrays[0] for name in "ab"]
    # Each of 10 places meets 3 neighbours, the first and the last 2.
    assert convolution_product(main.by_name["conv"], *arrays).flops == 2 * 2 * (10 * 3 - 2) * 4 * 6


def test_short_sides_fill_up_the_matrix_unit():
    product = Product(1, 512, 64, 512, "bf16")
    assert product.filled(128) == 2 * product.flops
    assert product.filled(256) == 4 * product.flops
    assert product.seconds(CHIPS["v5e"]) == pytest.approx(2 * product.flops / 1.97e14)
    assert Product(1, 512, 512, 64, "bf16").filled(128) == 2 * product.flops


def test_a_fusion_that_slices_reads_the_slice_and_one_that_updates_writes_the_update():
    before = (
        "%sliced (p: f32[24,8,4], i: s32[]) -> f32[8,4] {\n"
        "  %p = f32[24,8,4]{2,1,0} parameter(0)\n  %i = s32[] parameter(1)\n  %z = s32[] constant(0)\n"
        "  %slice = f32[1,8,4]{2,1,0} dynamic-slice(%p, %i, %z, %z), dynamic_slice_sizes={1,8,4}\n"
        "  ROOT %flat = f32[8,4]{1,0} bitcast(%slice)\n}\n\n"
        "%updated (q: f32[24,8,4], j: s32[], u: f32[1,8,4]) -> f32[24,8,4] {\n"
        "  %q = f32[24,8,4]{2,1,0} parameter(0)\n  %j = s32[] parameter(1)\n  %u = f32[1,8,4]{2,1,0} parameter(2)\n"
        "  %y = s32[] constant(0)\n  %twice = f32[1,8,4]{2,1,0} add(%u, %u)\n"
        "  ROOT %put = f32[24,8,4]{2,1,0} dynamic-update-slice(%q, %twice, %j, %y, %y)\n}\n\n"
    )
    module = module_of(
        "%a = f32[24,8,4]{2,1,0} parameter(0)",
        "%k = s32[] parameter(1)",
        "%v = f32[1,8,4]{2,1,0} parameter(2)",
        "%read = f32[8,4]{1,0} fusion(%a, %k), kind=kLoop, calls=%sliced",
        "ROOT %write = f32[24,8,4]{2,1,0} fusion(%a, %k, %v), kind=kLoop, calls=%updated",
        before=before,
    )
    assert work_of(module, "read").moved_bytes == 2 * 128 + 4
    written = work_of(module, "write")
    assert written.moved_bytes == 2 * 128 + 4
    assert written.operations == 32


def test_memory_on_the_chip_costs_no_bandwidth():
    module = module_of(
        "%a = f32[16]{0:T(128)S(1)} parameter(0)",
        "ROOT %b = f32[16]{0} negate(%a)",
    )
    assert work_of(module, "b").moved_bytes == 64


def test_attention_kernels_count_by_their_names_since_no_compiler_sees_into_them():
    shapes = ", ".join(["bf16[2,16,512,64]{3,2,1,0}"] * 3)
    module = module_of(
        *(f"%{name} = bf16[2,16,512,64]{{3,2,1,0}} parameter({index})" for index, name in enumerate("qkv")),
        "%mask = s8[1,4,4]{2,1,0} parameter(3)",
        f'%splash_mha_fwd_residuals.1 = ({shapes}) custom-call(%mask, %q, %k, %v), custom_call_target="tpu_custom_call"',
        "%splash_mha_dkv_no_residuals.2 = bf16[2,16,512,64]{3,2,1,0} custom-call(%mask, %q, %k, %v), "
        'custom_call_target="tpu_custom_call"',
        '%buffer = bf16[2,16,512,64]{3,2,1,0} custom-call(), custom_call_target="AllocateBuffer"',
        'ROOT %other = bf16[2,16,512,64]{3,2,1,0} custom-call(%q), custom_call_target="else"',
    )
    one = 2 * 32 * 512 * 512 * 64
    assert work_of(module, "splash_mha_fwd_residuals.1").flops == 2 * one
    assert work_of(module, "splash_mha_fwd_residuals.1").operations == 12 * 32 * 512 * 512
    assert work_of(module, "splash_mha_dkv_no_residuals.2").flops == 4 * one
    assert work_of(module, "other").flops == 0
    assert work_of(module, "buffer").moved_bytes == 0


@pytest.mark.parametrize("batched", [False, True])
def test_compiled_products_have_the_flops_of_their_formula(batched):
    def run(left, right):
        dimensions = (((2,), (1,)), ((0,), (0,))) if batched else (((2,), (0,)), ((), ()))
        return jnp.tanh(lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32))

    shapes = [(4, 8, 16), (4, 16, 32)] if batched else [(4, 8, 16), (16, 32)]
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    module = parse_module(jax.jit(run).lower(*structs).compile().as_text())
    main = module.computations[module.entry]
    total = sum(instruction_work(i, main, module).flops for i in main.instructions)
    assert total == 2 * 4 * 8 * 16 * 32
