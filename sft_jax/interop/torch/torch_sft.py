"""SFT in PyTorch, tuned for CPUs, for `python -m sft_jax.benchmark --against=torch`.

The same computation as `models/sft.py` in the paper's preset, with the same weights and the same
AdamW step as `training/step.py`. One product computes query, key and value, and the fused attention
takes views of it. A key mask stays on the fused path; a batch without padding has no mask at all.
Needs the extra `torch`.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the name PyTorch itself uses)

from sft_jax.config.checks import check_choice
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config
from sft_jax.interop.torch.torch_pools import POOLS, pool, saliency_of
from sft_jax.interop.weights.reference_weights import to_reference
from sft_jax.tasks import from_config
from sft_jax.types import Batch, ConfigError

_EPSILON = 1e-5
# Features and masks (None if nothing is masked) in the order of the modalities.
Inputs = tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]


class Attention(nn.Module):
    """`z + dropout(MHA(LN(z)))` with a norm without parameters."""

    def __init__(self, width: int, num_heads: int, rate: float):
        super().__init__()
        self.num_heads, self.rate = num_heads, rate
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, z: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the new tokens `[b, t, d]`, and query and key `[b, h, t, e]`.

        Args:
            z: Tokens `[b, t, d]`.
            mask: `[b, t]` bool, true for keys to attend to; None for all keys.
        """
        normed = F.layer_norm(z, z.shape[-1:], eps=_EPSILON)
        packed = F.linear(normed, self.in_proj_weight, self.in_proj_bias)
        packed = packed.unflatten(-1, (3, self.num_heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4)  # views, which the kernel accepts
        bias = None if mask is None else mask[:, None, None, :]
        values = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        update = self.out_proj(values.transpose(1, 2).flatten(2))
        return z + F.dropout(update, self.rate, self.training), query, key


def _mlp(width: int, hidden: int, rate: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width, eps=_EPSILON),
        nn.Linear(width, hidden),
        nn.Dropout(rate),
        nn.ReLU(),
        nn.Linear(hidden, width),
        nn.Dropout(rate),
    )


class Tokenizer(nn.Module):
    """Projection of features, with CLS in front and learned positions."""

    def __init__(self, spec: ModalitySpec, width: int):
        super().__init__()
        self.proj = nn.Linear(spec.feature_dim, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.empty(1, spec.num_tokens + 1, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Maps `[b, t, f]` to `[b, t + 1, d]`; padding counts as zeros."""
        if mask is not None:
            x = torch.where(mask[..., None], x, 0)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        return torch.cat([cls, self.proj(x)], dim=1) + self.pos_embedding


class Network(nn.Module):
    """Everything after the tokenizers, with the names of the reference's state dict."""

    def __init__(self, config: Config):
        super().__init__()
        self.specs, model = config.modalities, config.model
        width = model.embed_dim
        attention = functools.partial(Attention, width, model.num_heads, model.dropout)
        mlp = functools.partial(_mlp, width, round(model.style.mlp_ratio * width), model.dropout)
        depths = {spec.name: model.num_pre_layers for spec in self.specs}
        for name, depth in {**depths, "fused": model.num_post_layers}.items():
            self.add_module(f"attns_{name}", nn.ModuleList(attention() for _ in range(depth)))
            self.add_module(f"mlps_{name}", nn.ModuleList(mlp() for _ in range(depth)))
        self.sparse_attn = nn.ModuleList(attention() for _ in self.specs)
        self.classifier = nn.Sequential(
            nn.LayerNorm(width, eps=_EPSILON), nn.Linear(width, from_config(config).output_size)
        )

    def forward(self, tokens: list[Tensor], masks: tuple[Tensor | None, ...]) -> Tensor:
        """Returns logits `[b, o]`.

        Args:
            tokens: Tokens `[b, t + 1, d]` of every modality.
            masks: Masks `[b, t]` of the tokens without CLS.
        """
        cls: Any = 0
        pooled_tokens, pooled_masks = [], []
        parts = zip(self.specs, tokens, masks, self.sparse_attn, strict=True)
        for spec, z, mask, attend in parts:
            z = self._blocks(spec.name, z, _with_cls(mask))
            z, query, key = attend(z, _with_cls(mask))
            saliency = None
            if spec.pool == "attn_topk":
                saliency = saliency_of(query.detach(), key.detach(), mask)
            pooled, pooled_mask = pool(z[:, 1:], mask, saliency, spec)
            modality_cls = z[:, 0]
            if pooled_mask is not None:
                modality_cls = torch.where(pooled_mask.any(dim=1, keepdim=True), modality_cls, 0)
            cls = cls + modality_cls
            pooled_tokens.append(pooled)
            pooled_masks.append(pooled_mask)
        z = torch.cat([cls[:, None], *pooled_tokens], dim=1)
        z = self._blocks("fused", z, _with_cls(_join(pooled_tokens, pooled_masks)))
        return self.classifier(z[:, 0])

    def _blocks(self, name: str, z: Tensor, mask: Tensor | None) -> Tensor:
        attentions, mlps = getattr(self, f"attns_{name}"), getattr(self, f"mlps_{name}")
        for attention, mlp in zip(attentions, mlps, strict=True):
            z = attention(z, mask)[0]
            z = z + mlp(z)
        return z


class TorchSft(nn.Module):
    """The model; `state_dict()` has the reference's names, with query, key and value packed."""

    def __init__(self, config: Config):
        super().__init__()
        self.names = tuple(spec.name for spec in config.modalities)
        for spec in config.modalities:
            self.add_module(f"{spec.name}_tokenizer", Tokenizer(spec, config.model.embed_dim))
        self.network = Network(config)

    def forward(self, inputs: tuple[Tensor, ...], masks: tuple[Tensor | None, ...]) -> Tensor:
        """Returns logits `[b, o]`; see `tensors` for the arguments."""
        parts = zip(self.names, inputs, masks, strict=True)
        tokens = [getattr(self, f"{name}_tokenizer")(x, mask) for name, x, mask in parts]
        return self.network(tokens, masks)


def _with_cls(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else F.pad(mask, (1, 0), value=True)


def _join(tokens: list[Tensor], masks: list[Tensor | None]) -> Tensor | None:
    if all(mask is None for mask in masks):
        return None
    pairs = zip(tokens, masks, strict=True)
    filled = [x.new_ones(x.shape[:2], dtype=torch.bool) if m is None else m for x, m in pairs]
    return torch.cat(filled, dim=1)


# --- parameters and inputs of the JAX model


def check_model(config: Config):
    """Raises `ConfigError` unless this module implements the model."""
    model, where = config.model, "PyTorch comparison: "
    check_choice(f"{where}task.name", config.task.name, ("auto", "classification"))
    check_choice(f"{where}model.name", model.name, ("sft",))
    check_choice(f"{where}model.preset", model.preset, ("paper",))
    check_choice(f"{where}model.attention", model.attention, ("dense",))
    check_choice(f"{where}model.dtype", model.dtype, ("float32",))
    for spec in config.modalities:
        check_choice(f"{where}modality {spec.name!r}: tokenizer", spec.tokenizer, ("feature",))
        check_choice(f"{where}modality {spec.name!r}: pool", spec.pool, POOLS)
    outputs = from_config(config).output_size
    if not config.modalities or not outputs:
        raise ConfigError(
            f"{where}given {len(config.modalities)} modalities and {outputs} outputs, expected at "
            "least one of each, since no data is read here; set modalities and model.num_classes"
        )


def check_training(config: Config):
    """Raises `ConfigError` unless this module implements the model and its training step."""
    check_model(config)
    where = "PyTorch comparison: "
    check_choice(f"{where}mixup.mode", config.mixup.mode, ("none",))
    check_choice(f"{where}optimizer.schedule", config.optimizer.schedule, ("constant", "plateau"))
    augment = config.augment
    settings = {
        "train.accumulate": (config.train.accumulate, 1),
        "augment.rotation_degrees": (augment.rotation_degrees, 0),
        "augment.jitter": (augment.jitter, 0),
        "augment.scale": (augment.scale, 0),
        "optimizer.warmup": (config.optimizer.warmup.value, 0),
    }
    for name, (value, supported) in settings.items():
        if value != supported:
            raise ConfigError(
                f"{where}{name}: given {value}, expected {supported}, since the PyTorch step does "
                f"not support it; set it to {supported} for both"
            )


def build(config: Config, params: Mapping[str, Any]) -> TorchSft:
    """The PyTorch model with parameters of the JAX model.

    Args:
        config: Configuration of the model.
        params: Parameters of the JAX model.

    Raises:
        ConfigError: This module does not implement the model.
        DataError: `params` are those of another model.
    """
    check_model(config)
    names = [spec.name for spec in config.modalities]
    packed = {
        f"network.sparse_attn.{i}.in_proj_{kind}": None
        for i in range(len(names))
        for kind in ("weight", "bias")
    }
    state = to_reference(params, config.model, names, like=packed)
    model = TorchSft(config)
    model.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    return model


def tensors(config: Config, batch: Batch) -> Inputs:
    """Copies of a batch's inputs and masks as tensors; a mask that hides nothing is None."""
    names = [spec.name for spec in config.modalities]
    inputs = tuple(torch.tensor(np.asarray(batch["inputs"][name])) for name in names)
    masks = [torch.tensor(np.asarray(batch["mask"][name])) for name in names]
    return inputs, tuple(None if bool(mask.all()) else mask for mask in masks)


def logits(config: Config, params: Mapping[str, Any], batch: Batch) -> np.ndarray:
    """Logits `[b, o]` of the PyTorch model with parameters of the JAX model."""
    model = build(config, params).eval()
    with torch.inference_mode():
        return model(*tensors(config, batch)).numpy()


# --- training and inference


def candidates(
    config: Config, params: Mapping[str, Any], batch: Batch, threads: int | None = None
) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """PyTorch eager and compiled, each with its own model and optimizer.

    The loss is cross-entropy with label smoothing, averaged with the weights of the batch. The
    first call compiles a compiled candidate, which needs a C++ compiler.

    Args:
        config: Configuration of model, optimizer and loss.
        params: Parameters of the JAX model, which are copied.
        batch: Batch for every call, which is copied.
        threads: Number of PyTorch's threads in this process; None takes the available cores, as
            XLA does.

    Returns:
        For each candidate a function that takes an optimizer step and returns the loss, and one
        that returns the logits `[b, o]`.

    Raises:
        ConfigError: See `check_training`.
    """
    check_training(config)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    # One graph of fixed shapes; whatever would break the graph is an error.
    compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False)
    compilers: dict[str, Callable[..., Callable[..., Tensor]]]
    compilers = {"torch eager": lambda module: module, "torch compiled": compiled}
    return {
        name: _train_and_infer(config, build(config, params), batch, compiler)
        for name, compiler in compilers.items()
    }


def _train_and_infer(
    config: Config, model: TorchSft, batch: Batch, compiler: Callable[..., Callable[..., Tensor]]
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    inputs, masks = tensors(config, batch)
    label = torch.tensor(np.asarray(batch["target"]), dtype=torch.long)
    weight = torch.tensor(np.asarray(batch["weight"]))
    weight = weight / weight.sum().clamp(min=1)
    run, optimizer = compiler(model), optimizer_of(config, model)
    clip, smoothing = config.optimizer.clip_norm, config.train.label_smoothing

    def train() -> Tensor:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        losses = F.cross_entropy(
            run(inputs, masks), label, label_smoothing=smoothing, reduction="none"
        )
        loss = (weight * losses).sum()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip, foreach=True)
        optimizer.step()
        return loss.detach()

    def infer() -> Tensor:
        model.eval()
        with torch.inference_mode():
            return run(inputs, masks)

    return train, infer


def optimizer_of(config: Config, model: nn.Module) -> torch.optim.AdamW:
    """AdamW as in `training/optimizer.py`, with decay on the weights of linear layers only."""
    named, options = list(model.named_parameters()), config.optimizer
    decayed = {name for name, p in named if name.endswith("weight") and p.ndim == 2}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named if name in decayed]},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=options.learning_rate,
        betas=(options.b1, options.b2),
        weight_decay=options.weight_decay,
        fused=True,
    )
