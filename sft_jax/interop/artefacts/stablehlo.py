"""Export of a trained model as one function of raw arrays, and as StableHLO.

The exported function contains parameters and normalisation and needs neither this package nor the
configuration. Its arrays are named as by `python -m sft_jax.predict`, and it computes in float32.
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
from sft_jax.tasks import Task, from_config
from sft_jax.training.promotion import standard_promotion
from sft_jax.training.state import example_inputs

PLATFORMS = ("cpu", "tpu", "cuda")
Arrays = dict[str, Any]
Forward = Callable[[Any, Arrays, Arrays], Arrays]


@dataclasses.dataclass(frozen=True)
class Exportable:
    """A model to export.

    Attributes:
        config: Configuration of the model, with modalities and outputs.
        params: Parameters of the model.
        shift: `{m: [f]}`, subtracted from the features of a modality.
        scale: `{m: [f]}`, by which the difference is divided.
        task: Task, which answers from the model's outputs.
    """

    config: Config
    params: Any
    shift: Mapping[str, Sequence[float]]
    scale: Mapping[str, Sequence[float]]
    task: Task

    @classmethod
    def of(cls, run: Any) -> "Exportable":
        """The model of a run that `predictor.load` has opened."""
        normal = run.normalizer
        return cls(run.config, run.params, normal.shift, normal.scale, run.task)

    @classmethod
    def untrained(cls, config: Config, seed: int = 0) -> "Exportable":
        """A model with random parameters and without normalisation, for measurements of cost."""
        rng, inputs = np.random.default_rng(seed), example_inputs(config.modalities)
        shapes = jax.eval_shape(registry.build(config).init, jax.random.key(0), *inputs)["params"]

        def draw(path, x):
            if path[-1].key == "scale":
                return np.ones(x.shape, np.float32)
            return rng.standard_normal(x.shape, np.float32) / np.float32(
                np.sqrt(max(8, *x.shape[-2:]))
            )

        widths = {spec.name: spec.feature_dim for spec in config.modalities}
        zeros, ones = ({m: [x] * f for m, f in widths.items()} for x in (0.0, 1.0))
        return cls(
            config, jax.tree_util.tree_map_with_path(draw, shapes), zeros, ones, from_config(config)
        )


def signature(config: Config, rows: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Input arrays of the function of `inference`, by name.

    Args:
        config: Configuration with modalities.
        rows: Size of the batch axis, which may be symbolic.

    Returns:
        For every modality `<m> [b, t, f]` float32 (`[b, t]` int32 ids of a token modality) and
        `mask/<m> [b, t]` bool, true for time steps that are not padding.
    """
    inputs, mask = example_inputs(config.modalities)
    arrays = inputs | {f"mask/{name}": x for name, x in mask.items()}
    names = [name for m in inputs for name in (m, f"mask/{m}")]
    return {n: jax.ShapeDtypeStruct((rows, *arrays[n].shape[1:]), arrays[n].dtype) for n in names}


def inference(model: Exportable, forward: Forward | None = None) -> Callable[[Arrays], Arrays]:
    """Returns the function to export, from the arrays of `signature` to the model's outputs.

    Args:
        model: Model whose parameters become constants of the function.
        forward: Function from parameters, normalised inputs and masks to outputs; by default the
            one for this machine.

    Returns:
        Function whose outputs are `logits` `[b, o]` float32, the task's answers, such as
        `probabilities` and `predicted`, and, for pools that select tokens, `kept/<m>/indices` and
        `kept/<m>/saliency`, `[b, k]`, as in the file that `predict` writes.
    """
    forward = forward or forward_for(model.config, model.task)
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
            inputs[spec.name] = x  # `Tokenizer` ignores the content of padding
        mask = {spec.name: arrays[f"mask/{spec.name}"] for spec in specs}
        return forward(model.params, inputs, mask)

    return function


def forward_for(
    config: Config, task: Task, platform: str = "", implementation: str = "auto"
) -> Forward:
    """Returns the model in float32 as a function for one kind of device.

    Args:
        config: Configuration of the model.
        task: Task, which answers from the model's outputs.
        platform: `cpu`, or `gpu` for any accelerator; the present one if empty.
        implementation: Implementation of dense attention; `auto` never takes a device's own kernel
            here.
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
        return _outputs(cast(Output, network.apply({"params": params}, inputs, mask)), task)

    def forward(params: Any, inputs: Arrays, mask: Arrays) -> Arrays:
        if not platform:
            return apply(params, inputs, mask)
        with compiling_for(platform):
            return apply(params, inputs, mask)

    return forward


def to_stablehlo(model: Exportable) -> bytes:
    """Exports the function of `inference` for any batch size, on CPU, TPU and GPU.

    The CPU gets the program for CPUs. All others get one without custom kernels, since a kernel is
    a custom call that is tied to one version of one compiler.

    Args:
        model: Model to export.

    Returns:
        Content of a file for `jax.export.deserialize`, whose `call` maps a dict of arrays to one.
    """
    cpu, other = (forward_for(model.config, model.task, platform) for platform in ("cpu", "gpu"))

    def forward(params: Any, inputs: Arrays, mask: Arrays) -> Arrays:
        return jax.lax.platform_dependent(params, inputs, mask, cpu=cpu, default=other)

    (rows,) = jax.export.symbolic_shape("b")
    function = jax.jit(inference(model, forward))
    exported = jax.export.export(function, platforms=PLATFORMS)(signature(model.config, rows))
    return bytes(exported.serialize())


def describe(model: Exportable) -> dict[str, Any]:
    """Describes an artefact's inputs, outputs and what they mean as plain data."""
    (rows,) = jax.export.symbolic_shape("b")
    inputs = signature(model.config, rows)
    outputs = jax.eval_shape(inference(model), inputs)
    return {
        "inputs": [_entry(name, x) for name, x in inputs.items()],
        "outputs": [_entry(name, x) for name, x in outputs.items()],
        **{name: values.tolist() for name, values in model.task.legend.items()},
        "padding": "Samples of a batch are independent. Time steps with a false mask are ignored, "
        "and a modality whose mask is false everywhere counts as missing. Inputs are in the units "
        "of the training data.",
    }


def _entry(name: str, x: jax.ShapeDtypeStruct) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size) for size in x.shape]
    return {"name": name, "shape": shape, "dtype": str(x.dtype)}


def _outputs(output: Output, task: Task) -> Arrays:
    arrays = {"logits": output.logits, **task.answer(output.logits)}
    for name, pooled in output.pooled.items():
        for part in ("indices", "saliency"):
            if pooled.indices is not None and getattr(pooled, part) is not None:
                arrays[f"kept/{name}/{part}"] = jnp.asarray(getattr(pooled, part))
    return arrays
