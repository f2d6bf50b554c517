"""Simplification of converted ONNX graphs."""

import onnx
from onnx import shape_inference

# Operations that broadcast their inputs.
_BROADCASTING = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Where",
    "Max",
    "Less",
    "Equal",
    "And",
    "Or",
    "Greater",
}
Shape = tuple[int | str, ...]


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with `MatMul` products, without needless broadcasts and unused nodes.

    An `Einsum` that is a product with a matrix becomes `MatMul`, which can be quantised. An
    `Expand` is removed if its result would be broadcast anyway, and with it the arithmetic on
    shapes that a symbolic batch needs.
    """
    graph = model.graph
    for node in graph.node:
        if node.op_type == "Einsum" and _is_product(
            onnx.helper.get_node_attr_value(node, "equation")
        ):
            node.op_type = "MatMul"
            del node.attribute[:]
    _drop_expands(graph, _shapes(shape_inference.infer_shapes(model).graph))
    _drop_unused(graph)
    del graph.value_info[:]
    onnx.checker.check_model(model)
    return model


def _is_product(equation: bytes | str) -> bool:
    """Whether an equation is a `MatMul` with a matrix, such as `abk,kn->abn`."""
    text = equation.decode() if isinstance(equation, bytes) else equation
    inputs, output = text.replace(" ", "").split("->")
    left, right = inputs.split(",")
    return (
        len(right) == 2
        and left[-1] == right[0]
        and output == left[:-1] + right[1]
        and len(left) > 1
    )


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Shapes by name of the values with a size or symbol for every axis."""
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        sizes = [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.HasField("shape") and all(sizes):
            found[value.name] = tuple(sizes)
    return found


def _drop_expands(graph: onnx.GraphProto, shapes: dict[str, Shape]):
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    results = {value.name for value in graph.output}
    for expand in graph.node:
        if expand.op_type != "Expand" or expand.output[0] in results:
            continue
        (source, _), (target,) = expand.input, expand.output
        if all(_broadcasts(user, target, source, shapes) for user in users.get(target, ())):
            for user in users.get(target, ()):
                user.input[:] = [source if name == target else name for name in user.input]


def _broadcasts(node: onnx.NodeProto, target: str, source: str, shapes: dict[str, Shape]) -> bool:
    """Whether a node's result keeps its shape with the input `source` instead of `target`."""
    inputs = [source if name == target else name for name in node.input]
    known = all(name in shapes for name in (*inputs, node.output[0]))
    if node.op_type not in _BROADCASTING or not known:
        return False
    return _broadcast([shapes[name] for name in inputs]) == shapes[node.output[0]]


def _broadcast(shapes: list[Shape]) -> Shape:
    rank = max(map(len, shapes))
    sizes = []
    for axis in range(-rank, 0):
        met = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        sizes.append(met.pop() if len(met) == 1 else 1 if not met else str(met))
    return tuple(sizes)


def _drop_unused(graph: onnx.GraphProto):
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    kept = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(kept)
