"""Export to ONNX with `jax2onnx`, and quantisation of the weights to int8.

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
    """Converts the function of `stablehlo.inference` for any batch size to ONNX.

    Attention is written out and layers are unrolled, so that the graph has only basic operations.
    Inputs and outputs have the names of the function's arrays.

    Args:
        model: Model to export.

    Returns:
        Content of an ONNX file.
    """
    function = inference(model, forward_for(model.config, "gpu", implementation="xla"))
    (rows,) = jax.export.symbolic_shape("b")
    arrays = signature(model.config, rows)

    def positional(*args):
        return function(dict(zip(arrays, args, strict=True)))

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
    """Quantises weights to int8 with one scale per matrix, and activations at run time."""
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
    """Suppresses warnings about unknown shapes and unneeded steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
