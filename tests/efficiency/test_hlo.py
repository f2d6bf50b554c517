"""Counts of compiled programs against sums worked by hand and against unrolled programs.

`programs/` holds what `compiled.as_text()` gave for small functions, metadata left out: `tpu_*` for
v5e by libtpu 0.0.42, `cpu_loop` by jaxlib 0.10.2.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.efficiency.hlo import hlo_text, loops
from sft_jax.efficiency.hlo.hlo_cost import Collective, program_cost

PROGRAMS = Path(__file__).parent / "programs"


def text(name):
    return (PROGRAMS / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("shape", "nbytes", "padded", "space"),
    [
        ("f32[]", 4, 4, 0),
        ("pred[24,38]{1,0}", 24 * 38, 24 * 38, 0),
        ("s4[10]{0}", 5, 5, 0),
        ("f8e4m3fn[10]{0}", 10, 10, 0),
        # A scalar takes a row of lanes; a vector whole rows.
        ("s32[]{:T(128)S(6)}", 4, 512, 6),
        ("bf16[40]{0:T(256)(128)(2,1)S(1)}", 80, 512, 1),
        # The last two physical axes, 8 and 1201, become 8 and 1280.
        ("bf16[120,1201,8]{1,2,0:T(8,128)(2,1)}", 120 * 1201 * 16, 120 * 8 * 1280 * 2, 0),
        ("f32[24,1201,5,8]{3,2,1,0:T(8,128)}", 24 * 1201 * 160, 24 * 1201 * 8 * 128 * 4, 0),
    ],
)
def test_bytes_of_an_array_with_and_without_its_tiles_filled(shape, nbytes, padded, space):
    (array,) = hlo_text.shapes_of(shape)
    assert (array.nbytes, array.padded_bytes, array.space) == (nbytes, padded, space)


def test_a_tuple_has_the_arrays_of_its_parts():
    shapes = hlo_text.shapes_of("((f32[2,3]{1,0}, /*index=1*/u32[]), token[])")
    assert [(shape.dtype, shape.dims) for shape in shapes] == [
        ("f32", (2, 3)),
        ("u32", ()),
        ("token", ()),
    ]
    assert sum(shape.nbytes for shape in shapes) == 28


TILE = 300 // 8 * 8 + 8
CARRY = TILE * 128 * 4  # f32[300,128] in tiles of 8 x 128
SCALAR = 512  # of 4 bytes, or of 1


def test_a_loop_on_a_tpu_that_stacks_its_results():
    """Each of seven turns writes a slice of the stack in place, and doubles and counts on."""
    cost = program_cost(text("tpu_update"))
    # Turn: copy and add of the counter (2 + 3), the slice's index, the comparison (3).
    turn = {"slice": 2 * CARRY, "carry": 2 * CARRY, "scalars": 9 * SCALAR}
    start = 2 * CARRY + 2 * SCALAR
    assert cost.nbytes == 7 * sum(turn.values()) + start
    # The stack and the argument lie in main memory, the carry on the chip; three scalars of nine
    # are counter copies and the index on the chip.
    assert cost.main_bytes == 7 * (CARRY + 6 * SCALAR) + CARRY + 2 * SCALAR
    assert (cost.flops, cost.collectives, cost.unknown_loops) == (0, (), 0)


def test_a_loop_of_products_on_a_tpu():
    cost = program_cost(text("tpu_loop"))
    square = 256 * 256
    f32, bf16 = 4 * square, 2 * square
    assert cost.flops == 6 * 2 * 256**3
    # Turn: the carry is copied, then read beside one slice of the weights, and written.
    turn = 2 * f32 + (f32 + bf16 + f32) + 9 * SCALAR
    convert, first, copy_out = 6 * (f32 + bf16), 2 * f32, 2 * f32
    assert cost.nbytes == 6 * turn + convert + first + copy_out + 2 * SCALAR


def test_a_loop_on_a_cpu_whose_turns_are_noted():
    cost = program_cost(text("cpu_loop"))
    square = 64 * 64 * 4
    # Turn: slice (2), product (3), tanh (2); copy and add of the counter, index, comparison.
    assert cost.nbytes == 6 * (7 * square + 8 + 12 + 4 + 9) + 2 * square + 8
    assert cost.main_bytes == cost.nbytes
    assert cost.flops == 6 * 2 * 64**3


def test_products_that_became_convolutions_with_holes_count_real_pairs_alone():
    """Samples and heads are spatial axes there, whose windows meet one element each."""
    b, t, h, e = 8, 300, 5, 8
    assert program_cost(text("tpu_attention")).flops == 2 * (2 * b * h * t * t * e)


def test_collectives_count_what_is_reduced():
    """A small gather became a reduction of four parts of 40 numbers beside a sum of 40."""
    assert program_cost(text("tpu_collectives")).collectives == (
        Collective("all-reduce", 2 * 30 * 2, 4, 1),
        Collective("all-reduce", 40 * 4 + 4 * 40 * 4, 4, 1),
    )


def test_a_collective_inside_a_fusion_is_seen():
    program = """HloModule fused

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%all-reduce-scatter (x: f32[64], i: s32[]) -> f32[16] {
  %x = f32[64]{0} parameter(0)
  %i = s32[] parameter(1)
  %reduced = f32[64]{0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %part = f32[16]{0} dynamic-slice(%reduced, %i), dynamic_slice_sizes={16}
}

ENTRY %main (x: f32[64], i: s32[]) -> f32[16] {
  %x = f32[64]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %fusion = f32[16]{0} fusion(%x, %i), kind=kCustom, calls=%all-reduce-scatter
}
"""
    cost = program_cost(program)
    assert cost.collectives == (Collective("all-reduce", 64 * 4, 4, 1),)
    assert cost.nbytes == 64 * 4 + 4 + 16 * 4


@pytest.mark.parametrize(
    ("groups", "size"),
    [("{{0,1,2,3}}", 4), ("[2,8]<=[16]", 8), ("[4,2]<=[2,4]T(1,0)", 2), ("{}", 0)],
)
def test_devices_that_reduce_together(groups, size):
    program = text("tpu_collectives").replace("{{0,1,2,3}}", groups)
    assert [entry.group for entry in program_cost(program).collectives] == [size, size]


@pytest.mark.parametrize(("old", "new"), [("constant(7)", "constant(9)"), ("LT", "LE")])
def test_turns_follow_from_the_condition(old, new):
    program = hlo_text.parse(text("tpu_update").replace(old, new))
    entry = program.computations[program.entry]
    assert (
        loops.trip_count(program, entry, entry.instructions["while"])
        == {"LT": 9, "LE": 8}["LE" if new == "LE" else "LT"]
    )


def test_a_loop_whose_turns_data_decide_counts_once_and_is_reported():
    once = program_cost(text("tpu_update").replace("s32[]{:T(128)} constant(7)", "s32[] iota()"))
    assert once.unknown_loops == 1
    assert once.nbytes < program_cost(text("tpu_update")).nbytes / 3


def cost_of(function, *args):
    return program_cost(jax.jit(function).lower(*args).compile().as_text())


@pytest.mark.parametrize("length", [12, 30])
def test_a_loop_costs_as_much_as_the_loop_written_out(length, rng):
    weight, first = rng.standard_normal((2, 128, 128), np.float32)

    def run(unroll):
        def turn(carry, _):
            return jnp.tanh(carry @ weight), None

        return cost_of(
            lambda x: jax.lax.scan(turn, x, None, length=length, unroll=unroll)[0], first
        )

    looped, unrolled = run(1), run(length)
    assert looped.flops == unrolled.flops == length * 2 * 128**3
    # The start is copied into the loop's carry, once.
    assert looped.nbytes == pytest.approx(unrolled.nbytes, rel=0.05)


def test_loop_free_bytes_are_those_of_xla(rng):
    a, b = rng.standard_normal((2, 256, 256), np.float32)
    compiled = jax.jit(lambda a, b: jnp.tanh(a @ b) @ b + a.sum()).lower(a, b).compile()
    expected = compiled.cost_analysis()["bytes accessed"]
    assert program_cost(compiled.as_text()).nbytes == pytest.approx(expected, rel=0.02)


def test_bytes_on_a_tpu_are_those_of_xla_but_for_copies():
    """Its `cost_analysis` said 40,510,464; an asynchronous copy counts twice there.

    Two arrays are copied so, and each copy has a tuple of a few padded pointers beside.
    """
    copied = 8 * 5 * 8 * 384 * 2  # bf16[8,300,5,8], 300 in tiles of 128
    ours = program_cost(text("tpu_attention")).nbytes
    assert 0 < 40_510_464 - ours - 2 * (2 * copied) < 20 * SCALAR


def test_of_two_branches_the_dearest_counts(rng):
    x = rng.standard_normal((64, 64), np.float32)
    cost = cost_of(
        lambda x, i: jax.lax.cond(i > 0, lambda: x @ x @ x, lambda: x @ x), x, np.int32(1)
    )
    assert cost.flops == 2 * 2 * 64**3


def test_a_strided_convolution_leaves_out_its_padding(rng):
    image = rng.standard_normal((2, 9, 4), np.float32)
    kernel = rng.standard_normal((3, 4, 6), np.float32)

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (2,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
        )

    # Five windows of three at -1, 1, 3, 5, 7: the first and the last miss one element each.
    assert cost_of(convolve, image, kernel).flops == 2 * 2 * 6 * 4 * (5 * 3 - 2)


@pytest.mark.parametrize(("says", "nbytes"), [(10, 12288), (20000, 20000)])
def test_a_kernel_counts_its_arrays_and_what_it_says_of_itself(says, nbytes):
    program = f"""HloModule kernel

ENTRY %main (x: f32[8,128]) -> f32[8,256] {{
  %x = f32[8,128]{{1,0}} parameter(0)
  ROOT %call = f32[8,256]{{1,0}} custom-call(%x), custom_call_target="tpu_custom_call", \
backend_config={{"custom_call_config":{{"cost_estimate":{{"flops":"77","bytes_accessed":"{says}"}}}}}}
}}
"""
    cost = program_cost(program)
    assert (cost.nbytes, cost.flops) == (nbytes, 77)
    assert 8 * 128 * 4 + 8 * 256 * 4 == 12288


def test_a_product_of_a_gpu_library_counts():
    program = """HloModule product

ENTRY %main (a: bf16[63,40], b: bf16[40,50]) -> bf16[63,50] {
  %a = bf16[63,40]{1,0} parameter(0)
  %b = bf16[40,50]{1,0} parameter(1)
  %call = (bf16[63,50]{1,0}, s8[512]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"alpha_real":1,\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %c = bf16[63,50]{1,0} get-tuple-element(%call), index=0
}
"""
    cost = program_cost(program)
    assert cost.flops == 2 * 63 * 40 * 50
    # Without the library's scratch space.
    assert cost.nbytes == 2 * (63 * 40 + 40 * 50 + 63 * 50)


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo_text.parse("HloModule nothing\n")
    with pytest.raises(ValueError, match="no instruction in computation 'main'"):
        hlo_text.parse("HloModule nothing\n\nENTRY %main () -> f32[] {\n}\n")
