"""Operations of matrix products and convolutions in a compiled program."""

import math
import re
from typing import Any

import numpy as np

from sft_jax.efficiency.hlo.hlo_text import Computation, Instruction, Program


def flops(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Operations of an instruction and of what is fused into it, two per multiply-add.

    Element-wise work is left out. A kernel counts by its own estimate.
    """
    opcode = instruction.opcode
    if opcode == "fusion":
        inner = program.computations[instruction.called("calls")[0]]
        return sum(flops(program, inner, i) for i in inner.instructions.values())
    if opcode == "dot":
        contracted = _numbers(instruction.attribute("lhs_contracting_dims"))
        return _dot(computation, instruction, contracted)
    if opcode == "convolution":
        return _convolution(computation, instruction)
    if opcode == "custom-call":
        return _call(computation, instruction)
    return 0


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", text)]


def _dot(computation: Computation, instruction: Instruction, contracted: list[int]) -> int:
    left = computation.operand(instruction, 0).shapes[0].dims
    return 2 * instruction.shapes[0].size * math.prod(left[axis] for axis in contracted)


def kernel_estimate(instruction: Instruction) -> dict[str, int]:
    """A Pallas kernel's own estimate (`flops`, `bytes_accessed`); empty if it has none."""
    config = instruction.backend_config
    estimate = config.get("custom_call_config", config).get("cost_estimate", {})
    return {key: int(value) for key, value in estimate.items()}


def library_product(instruction: Instruction) -> dict[str, Any]:
    """Axes of a product that a GPU library computes; empty for any other call."""
    config = instruction.backend_config
    return config.get("gemm_backend_config", config).get("dot_dimension_numbers", {})


def _call(computation: Computation, instruction: Instruction) -> int:
    axes = library_product(instruction)
    if axes:
        contracted = [int(axis) for axis in axes["lhs_contracting_dimensions"]]
        return _dot(computation, instruction, contracted)
    return kernel_estimate(instruction).get("flops", 0)


def _convolution(computation: Computation, instruction: Instruction) -> int:
    """Operations on real elements of the input; padding and dilation holes are left out."""
    left, kernel = (computation.operand(instruction, i).shapes[0].dims for i in (0, 1))
    output = instruction.shapes[0].dims
    names, _, out_names = instruction.attribute("dim_labels").partition("->")
    left_names, kernel_names = names.split("_")
    window = _window(instruction.attribute("window"))
    # The kernel has the input features of one group, and the output the batch of one group.
    total = 2 * output[out_names.index("b")] * output[out_names.index("f")]
    total *= kernel[kernel_names.index("i")]
    for axis in range(len(output) - 2):
        total *= _pairs(
            left[left_names.index(str(axis))],
            kernel[kernel_names.index(str(axis))],
            output[out_names.index(str(axis))],
            {key: values[axis] for key, values in window.items()},
        )
    return total


def _window(text: str) -> dict[str, list[Any]]:
    window = {}
    for part in text.split():
        key, _, values = part.partition("=")
        window[key] = [
            [int(v) for v in value.split("_")] if "_" in value else int(value)
            for value in values.split("x")
        ]
    return window


def _pairs(size: int, kernel: int, output: int, window: dict[str, Any]) -> int:
    """Number of (output, kernel) positions along one axis that meet an element of the input."""
    stride, dilation = window.get("stride", 1), window.get("rhs_dilate", 1)
    low, holes = window.get("pad", (0, 0))[0], window.get("lhs_dilate", 1)
    position = np.arange(output)[:, None] * stride + np.arange(kernel) * dilation - low
    return int(((position % holes == 0) & (position >= 0) & (position < size * holes)).sum())
