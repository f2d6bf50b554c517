"""Export to ONNX with `jax2onnx`, and storage of the weights in int8.

Needs the extra `export`.
"""

import contextlib
import logging
from collections.abc import Iterator

import jax
import jax.export
import jax2onnx
import numpy as np
import onnx
from onnx import numpy_helper

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
    function = inference(model, forward_for(model.config, model.task, "gpu", implementation="xla"))
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
    """An ONNX file with the weight matrices of its products stored in int8.

    Every output channel (column) has a scale of its own. The runtime turns the weights back into
    float32, and activations stay float32, so that the answer for a row depends on that row alone.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    factors = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    weights = [x for x in graph.initializer if x.name in factors and len(x.dims) == 2]
    nodes = []
    for tensor in weights:
        name = tensor.name
        values, scale = quantize_columns(numpy_helper.to_array(tensor))
        graph.initializer.remove(tensor)
        parts = {f"{name}_int8": values, f"{name}_scale": scale}
        graph.initializer.extend(numpy_helper.from_array(x, n) for n, x in parts.items())
        nodes.append(onnx.helper.make_node("DequantizeLinear", [*parts], [name], axis=1))
    float_nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *float_nodes])
    onnx.checker.check_model(model)
    return model.SerializeToString()


def quantize_columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest int8 values of a matrix `[inputs, outputs]`, and a float32 scale per output.

    The largest magnitude of a column becomes 127, so no value is off by more than half its scale.
    """
    scale = np.abs(matrix).max(axis=0) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))
    return np.rint(matrix / scale).astype(np.int8), scale


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppresses warnings about unknown shapes and unneeded steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
