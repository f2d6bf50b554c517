"""A trained model as one function of raw arrays, and that function as StableHLO.

What comes out knows neither this package nor its configuration: parameters and normalisation are
inside, and arrays are named as `python -m sft_jax.predict` names them. Computed in float32.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from sft_jax.attention.platform import compiling_for
from sft_jax.config.run import Config
from sft_jax.models import registry
from sft_jax.models.base import Output
from sft_jax.training.promotion import standard_promotion
from sft_jax.training.state import example_inputs

PLATFORMS = ("cpu", "tpu", "cuda")
Arrays = dict[str, Any]
Forward = Callable[[Any, Arrays, Arrays], Arrays]


@dataclasses.dataclass(frozen=True)
class Exportable:
    """What an artefact is made of.

    Attributes:
        config: of the model, with its modalities and classes.
        params: the model's parameters.
        shift: `{m: [f]}`, taken from the features of a modality before they go in.
        scale: `{m: [f]}`, which they are then divided by.
        class_names: names of the `c` classes.
    """

    config: Config
    params: Any
    shift: Mapping[str, Sequence[float]]
    scale: Mapping[str, Sequence[float]]
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, run: Any) -> "Exportable":
        """The model of a run, as `inference.load` opens it."""
        normal = run.normalizer
        return cls(run.config, run.params, normal.shift, normal.scale, run.class_names)

    @classmethod
    def untrained(cls, config: Config, seed: int = 0) -> "Exportable":
        """A model of drawn parameters, for what does not depend on training; values as they are."""
        rng, inputs = np.random.default_rng(seed), example_inputs(config.modalities)
        shapes = jax.eval_shape(registry.build(config).init, jax.random.key(0), *inputs)["params"]

        def draw(path, x):
            if path[-1].key == "scale":
                return np.ones(x.shape, np.float32)
            return rng.standard_normal(x.shape, np.float32) / np.float32(
                np.sqrt(max(8, *x.shape[-2:]))
            )

        widths = {spec.name: spec.feature_dim for spec in config.modalities}
        names = tuple(f"class {i}" for i in range(config.model.num_classes))
        zeros, ones = ({m: [x] * f for m, f in widths.items()} for x in (0.0, 1.0))
        return cls(config, jax.tree_util.tree_map_with_path(draw, shapes), zeros, ones, names)


def signature(config: Config, rows: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays that the function of `inference` takes, by name.

    Args:
        config: with modalities.
        rows: size of the batch axis, which may be symbolic.

    Returns:
        For every modality `<m> [b, t, f]` float32 (`[b, t]` int32 ids of a token modality) and
        `mask/<m> [b, t]` bool, true where a real time step is.
    """
    inputs, mask = example_inputs(config.modalities)
    arrays = inputs | {f"mask/{name}": x for name, x in mask.items()}
    names = [name for m in inputs for name in (m, f"mask/{m}")]
    return {n: jax.ShapeDtypeStruct((rows, *arrays[n].shape[1:]), arrays[n].dtype) for n in names}


def inference(model: Exportable, forward: Forward | None = None) -> Callable[[Arrays], Arrays]:
    """The function that is exported: from the arrays of `signature` to the model's outputs.

    Args:
        model: its parameters become constants of the function.
        forward: from parameters, normalised inputs and masks to outputs; as this machine computes
            it where not given.

    Returns:
        `logits` and `probabilities`, `[b, c]` float32, and of pools that select `kept/<m>/indices`
        and `kept/<m>/saliency`, `[b, k]`, as in the file that `predict` writes.
    """
    forward = forward or forward_for(model.config)
    specs = model.config.modalities

    @standard_promotion
    def function(arrays: Arrays) -> Arrays:
        inputs = {}
        for spec in specs:
            x = arrays[spec.name]
            if spec.tokenizer != "token":
                shift, scale = (
                    np.asarray(numbers[spec.name], np.float32)
                    for numbers in (model.shift, model.scale)
                )
                x = (x - shift) / scale
            inputs[spec.name] = x  # what stands in padding reaches no product (`Tokenizer`)
        mask = {spec.name: arrays[f"mask/{spec.name}"] for spec in specs}
        return forward(model.params, inputs, mask)

    return function


def forward_for(config: Config, platform: str = "", implementation: str = "auto") -> Forward:
    """The model in float32, written as for one kind of device.

    Args:
        config: of the model.
        platform: `cpu` or `gpu` (what any accelerator takes); the one at hand if empty.
        implementation: of dense attention; `auto` is never a kernel of one device here.
    """
    changes: dict[str, Any] = {
        "dtype": "float32",
        "remat": "none",
        "implementation": implementation,
    }
    network = registry.build(
        dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    )

    def apply(params: Any, inputs: Arrays, mask: Arrays) -> Arrays:
        return _outputs(cast(Output, network.apply({"params": params}, inputs, mask)))

    def forward(params: Any, inputs: Arrays, mask: Arrays) -> Arrays:
        if not platform:
            return apply(params, inputs, mask)
        with compiling_for(platform):
            return apply(params, inputs, mask)

    return forward


def to_stablehlo(model: Exportable) -> bytes:
    """The function of `inference` for any batch size, on CPU, TPU and GPU.

    The CPU gets the program written for CPUs, everything else the one that needs no kernel of its
    own: kernels are custom calls, which hold for one version of one compiler.

    Returns:
        What `jax.export.deserialize` reads; its `call` takes and returns a dict of arrays.
    """
    cpu, other = (forward_for(model.config, platform) for platform in ("cpu", "gpu"))

    def forward(params: Any, inputs: Arrays, mask: Arrays) -> Arrays:
        return jax.lax.platform_dependent(params, inputs, mask, cpu=cpu, default=other)

    (rows,) = jax.export.symbolic_shape("b")
    function = jax.jit(inference(model, forward))
    exported = jax.export.export(function, platforms=PLATFORMS)(signature(model.config, rows))
    return bytes(exported.serialize())


def describe(model: Exportable) -> dict[str, Any]:
    """What stands beside an artefact, as plain data: its arrays in and out, and the classes."""
    (rows,) = jax.export.symbolic_shape("b")
    given = signature(model.config, rows)
    returned = jax.eval_shape(inference(model), given)
    return {
        "inputs": [_entry(name, x) for name, x in given.items()],
        "outputs": [_entry(name, x) for name, x in returned.items()],
        "class_names": list(model.class_names),
        "padding": "rows of a batch are independent; a step is read where its mask is true, and a "
        "modality whose mask is false everywhere counts as missing; inputs are in the units of the "
        "training data",
    }


def _entry(name: str, x: jax.ShapeDtypeStruct) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size) for size in x.shape]
    return {"name": name, "shape": shape, "dtype": str(x.dtype)}


def _outputs(output: Output) -> Arrays:
    found = {"logits": output.logits, "probabilities": jax.nn.softmax(output.logits)}
    for name, pooled in output.pooled.items():
        for part in ("indices", "saliency"):
            if pooled.indices is not None and getattr(pooled, part) is not None:
                found[f"kept/{name}/{part}"] = jnp.asarray(getattr(pooled, part))
    return found
