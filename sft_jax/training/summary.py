"""What is printed before training starts: parameters, tokens, devices, attention."""

import jax
from jax.sharding import Mesh

from sft_jax.config import Config
from sft_jax.models.attention import choose_implementation
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
    for spec in config.modalities:
        attention = _attention(model.implementation, spec.num_tokens)
        pooled = f"{spec.num_tokens} -> {spec.num_pooled} ({spec.pool})"
        lines.append(f"tokens      {spec.name}: {pooled}, {attention}")
    fused = sum(spec.num_pooled for spec in config.modalities)
    lines += [
        f"            fused: {1 + fused}, {_attention(model.implementation, fused)}",
        f"devices     {describe_mesh(mesh)}, batch {config.train.batch_size}"
        + (f" in {config.train.accumulate} micro-batches" if config.train.accumulate > 1 else ""),
    ]
    return "\n".join(lines)


def _attention(implementation: str, tokens: int) -> str:
    chosen = choose_implementation(implementation, jax.default_backend(), tokens + 1, tokens + 1)
    return f"{chosen} attention"
