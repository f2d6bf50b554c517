"""What is printed before training starts: parameters, tokens, devices, attention."""

import dataclasses

from jax.sharding import Mesh

from sft_jax.attention.dense import choose_implementation
from sft_jax.attention.platform import target_platform
from sft_jax.config.model import MbtOptions, ModelConfig
from sft_jax.config.run import Config
from sft_jax.training.sharding import describe_mesh


def describe(config: Config, parameters: dict[str, int], mesh: Mesh) -> str:
    """A few lines for a person.

    Args:
        config: resolved.
        parameters: by part, with `total`.
        mesh: of the run.
    """
    model = config.model
    parts = ", ".join(f"{name} {count:,}" for name, count in parameters.items() if name != "total")
    lines = [
        f"model       {model.name} ({model.preset}), width {model.embed_dim}, {model.num_heads} "
        f"heads, {model.num_pre_layers} + {model.num_post_layers} layers, {model.dtype}",
        f"parameters  {parameters['total']:,}: {parts}",
    ]
    pools = model.name == "sft"
    for spec in config.modalities:
        pooled = f" -> {spec.num_pooled} ({spec.pool})" if pools else ""
        attention = _attention(model, spec.num_tokens, fixed=model.attention == "fixed")
        lines.append(f"tokens      {spec.name}: {spec.num_tokens}{pooled}, {attention}")
    if pools:
        fused = sum(spec.num_pooled for spec in config.modalities)
        lines.append(f"            fused: {1 + fused}, {_attention(model, fused)}")
    if options := dataclasses.asdict(model.options):
        settings = ", ".join(f"{name} {value}" for name, value in options.items())
        lines.append(f"options     {settings}")
    if isinstance(model.options, MbtOptions):
        depth = model.num_layers
        fused = depth - model.options.num_unfused_layers(model.num_pre_layers, depth)
        lines.append(f"            {fused} of {depth} layers with bottlenecks")
    if config.mixup.mode != "none":
        mixup = config.mixup
        lines.append(
            f"mixup       {mixup.mode}, alpha {mixup.alpha:g}, {mixup.groups} groups, after "
            f"{mixup.warmup.value:g} {mixup.warmup.unit}"
        )
    lines.append(
        f"devices     {describe_mesh(mesh)}, batch {config.train.batch_size}"
        + (f" in {config.train.accumulate} micro-batches" if config.train.accumulate > 1 else "")
    )
    return "\n".join(lines)


def _attention(model: ModelConfig, tokens: int, fixed: bool = False) -> str:
    if fixed:
        return f"fixed attention (stride {model.stride}, expressivity {model.expressivity})"
    platform = target_platform()
    chosen = choose_implementation(model.implementation, platform, tokens + 1, tokens + 1)
    return f"{chosen} attention"
