"""The exported function as ONNX, by way of `jax2onnx`, and with weights in eight bits.

Needs the extra `export`.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.export
import jax2onnx
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from sft_jax.interop.artefacts.onnx_graph import tidied
from sft_jax.interop.artefacts.stablehlo import Exportable, forward_for, inference, signature
from sft_jax.interop.artefacts.unroll import unrolled

OPSET = 21


def to_onnx(model: Exportable) -> bytes:
    """The function of `interop.export.inference` for any batch size, as a file for onnxruntime.

    Attention is written out, and layers are unrolled, so that the runtime meets nothing but plain
    operations; inputs and outputs have the names that the function gives them.
    """
    function = inference(model, forward_for(model.config, "gpu", implementation="xla"))
    (rows,) = jax.export.symbolic_shape("b")
    arrays = signature(model.config, rows)

    def positional(*given):
        return function(dict(zip(arrays, given, strict=True)))

    flat = unrolled(positional, *arrays.values())
    returned = jax.eval_shape(function, arrays)
    with _quietly():
        proto = jax2onnx.to_onnx(
            flat,
            list(arrays.values()),
            model_name=model.config.model.name,
            opset=OPSET,
            input_names=list(arrays),
            output_names=list(returned),
        )
    return tidied(proto).SerializeToString()


def quantized(content: bytes) -> bytes:
    """An ONNX file whose weights are int8, one scale a matrix; activations are quantised as met."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(content)
        with _quietly():
            quantize_dynamic(
                before, after, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"]
            )
        onnx.checker.check_model(after)
        return after.read_bytes()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings in the log, of shapes that are not known and steps that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
