"""SFT in PyTorch, tuned for a CPU: what `python -m sft_jax.benchmark --against=torch` runs against.

The same computation as `models/sft.py` in the paper's preset, on the same weights, and one AdamW
step as `training/step.py` takes it. Query, key and value come out of one product and go into the
fused attention as views; its CPU kernel takes a key mask without leaving the fused path, and a
batch without padding carries no mask at all. Needs the extra `torch`; import this module only where
PyTorch is wanted.
"""

import dataclasses
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
from sft_jax.types import Batch, ConfigError

_EPSILON = 1e-5
# Features and masks (None where everything is real) in the order of the modalities.
Inputs = tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]


class Attention(nn.Module):
    """`z + dropout(MHA(LN(z)))` with a norm that learns nothing."""

    def __init__(self, width: int, num_heads: int, rate: float):
        super().__init__()
        self.num_heads, self.rate = num_heads, rate
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, z: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the new tokens `[b, t, d]`, and query and key `[b, h, t, e]`.

        `mask` is `[b, t]` bool, true where a key may be attended to; None where all may.
        """
        normed = F.layer_norm(z, z.shape[-1:], eps=_EPSILON)
        packed = F.linear(normed, self.in_proj_weight, self.in_proj_bias)
        packed = packed.unflatten(-1, (3, self.num_heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4)  # views: the kernel takes strides
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
    """Projection, CLS in front, learned positions."""

    def __init__(self, spec: ModalitySpec, width: int):
        super().__init__()
        self.proj = nn.Linear(spec.feature_dim, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.empty(1, spec.num_tokens + 1, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """From `[b, t, f]` to `[b, t + 1, d]`; what padding holds is replaced by zeros."""
        if mask is not None:
            x = torch.where(mask[..., None], x, 0)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        return torch.cat([cls, self.proj(x)], dim=1) + self.pos_embedding


class Network(nn.Module):
    """Everything behind the tokenizers, under the names of the reference's state dict."""

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
            nn.LayerNorm(width, eps=_EPSILON), nn.Linear(width, model.num_classes)
        )

    def forward(self, tokens: list[Tensor], masks: tuple[Tensor | None, ...]) -> Tensor:
        """Logits `[b, c]` from every modality's tokens and their masks (without CLS)."""
        cls: Any = 0
        kept, kept_masks = [], []
        parts = zip(self.specs, tokens, masks, self.sparse_attn, strict=True)
        for spec, z, mask, attend in parts:
            z = self._blocks(spec.name, z, _with_cls(mask))
            z, query, key = attend(z, _with_cls(mask))
            ranked = spec.pool == "attn_topk"
            saliency = saliency_of(query.detach(), key.detach(), mask) if ranked else None
            pooled, pooled_mask = pool(z[:, 1:], mask, saliency, spec)
            own = z[:, 0]
            if pooled_mask is not None:
                own = torch.where(pooled_mask.any(dim=1, keepdim=True), own, 0)
            cls = cls + own
            kept.append(pooled)
            kept_masks.append(pooled_mask)
        z = torch.cat([cls[:, None], *kept], dim=1)
        z = self._blocks("fused", z, _with_cls(_join(kept, kept_masks)))
        return self.classifier(z[:, 0])

    def _blocks(self, name: str, z: Tensor, mask: Tensor | None) -> Tensor:
        attentions, mlps = getattr(self, f"attns_{name}"), getattr(self, f"mlps_{name}")
        for attention, mlp in zip(attentions, mlps, strict=True):
            z = attention(z, mask)[0]
            z = z + mlp(z)
        return z


class TorchSft(nn.Module):
    """The whole model; `state_dict()` has the reference's names, with every qkv packed."""

    def __init__(self, config: Config):
        super().__init__()
        self.names = tuple(spec.name for spec in config.modalities)
        for spec in config.modalities:
            self.add_module(f"{spec.name}_tokenizer", Tokenizer(spec, config.model.embed_dim))
        self.network = Network(config)

    def forward(self, inputs: tuple[Tensor, ...], masks: tuple[Tensor | None, ...]) -> Tensor:
        """Logits `[b, c]`; see `tensors` for the arguments."""
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


# --- from ours


def check_model(config: Config):
    """Raises `ConfigError` where the model is not one that this module computes."""
    model, where = config.model, "PyTorch comparison: "
    check_choice(f"{where}model.name", model.name, ("sft",))
    check_choice(f"{where}model.preset", model.preset, ("paper",))
    check_choice(f"{where}model.attention", model.attention, ("dense",))
    check_choice(f"{where}model.dtype", model.dtype, ("float32",))
    for spec in config.modalities:
        check_choice(f"{where}modality {spec.name!r}: tokenizer", spec.tokenizer, ("feature",))
        check_choice(f"{where}modality {spec.name!r}: pool", spec.pool, POOLS)
    if not config.modalities or not model.num_classes:
        raise ConfigError(
            f"{where}given {len(config.modalities)} modalities and num_classes "
            f"{model.num_classes}, expected both set, since no data is read here; set them"
        )


def check_training(config: Config):
    """Raises `ConfigError` where a training step does more than the one of this module."""
    check_model(config)
    where = "PyTorch comparison: "
    check_choice(f"{where}mixup.mode", config.mixup.mode, ("none",))
    check_choice(f"{where}optimizer.schedule", config.optimizer.schedule, ("constant", "plateau"))
    augment = config.augment
    given = {
        "train.accumulate": (config.train.accumulate, 1),
        "augment.rotation_degrees": (augment.rotation_degrees, 0),
        "augment.jitter": (augment.jitter, 0),
        "augment.scale": (augment.scale, 0),
        "optimizer.warmup": (config.optimizer.warmup.value, 0),
    }
    for name, (value, only) in given.items():
        if value != only:
            raise ConfigError(
                f"{where}{name}: given {value}, expected {only}, since the PyTorch step leaves "
                "that out; set it so for both sides"
            )


def build(config: Config, params: Mapping[str, Any]) -> TorchSft:
    """The PyTorch model with our parameters.

    Args:
        config: of the model that `params` belong to.
        params: our tree.

    Raises:
        ConfigError: a model, preset, pool, tokenizer or dtype that is not offered here.
        DataError: `params` of another model.
    """
    check_model(config)
    names = [spec.name for spec in config.modalities]
    kinds = ("weight", "bias")
    packed = {
        f"network.sparse_attn.{i}.in_proj_{k}": None for i in range(len(names)) for k in kinds
    }
    state = to_reference(params, config.model, names, like=packed)
    model = TorchSft(config)
    model.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    return model


def tensors(config: Config, batch: Batch) -> Inputs:
    """A batch's inputs and masks as tensors of their own; a mask that hides nothing is None."""
    names = [spec.name for spec in config.modalities]
    inputs = tuple(torch.tensor(np.asarray(batch["inputs"][name])) for name in names)
    masks = [torch.tensor(np.asarray(batch["mask"][name])) for name in names]
    return inputs, tuple(None if bool(mask.all()) else mask for mask in masks)


def logits(config: Config, params: Mapping[str, Any], batch: Batch) -> np.ndarray:
    """Logits `[b, c]` that the PyTorch model gives for our parameters, to compare with ours."""
    model = build(config, params).eval()
    with torch.inference_mode():
        return model(*tensors(config, batch)).numpy()


# --- the candidates


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run the PyTorch model.

    Attributes:
        train: takes one optimizer step on the batch and returns its loss (a scalar tensor).
        infer: returns the logits `[b, c]` of the batch.
    """

    train: Callable[[], Tensor]
    infer: Callable[[], Tensor]


def candidates(
    config: Config, params: Mapping[str, Any], batch: Batch, threads: int | None = None
) -> dict[str, Candidate]:
    """PyTorch eager and compiled, each with a model and an optimizer of its own.

    The loss is cross-entropy with label smoothing, its mean weighted as in the batch. A compiled
    candidate is compiled by its first call, which needs a C++ compiler and raises what PyTorch
    raises where that fails (`torch._dynamo.exc.BackendCompilerFailed` and others).

    Args:
        config: of model, optimizer and loss.
        params: our tree, copied.
        batch: what every call runs on, copied.
        threads: of PyTorch, for the whole process; None takes the processors it may use, which is
            what XLA takes.

    Raises:
        ConfigError: see `build`; also a step that does more (mixup, augmentation, accumulation,
            a learning rate that moves by itself).
    """
    check_training(config)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    compilers = {"torch eager": lambda module: module, "torch compiled": compiled}
    return {
        name: candidate(config, build(config, params), batch, compiler)
        for name, compiler in compilers.items()
    }


def compiled(module: nn.Module) -> Callable[..., Tensor]:
    """The whole model as one graph of fixed shapes; what cannot be one graph is an error."""
    return torch.compile(module, fullgraph=True, dynamic=False)


def candidate(
    config: Config, model: TorchSft, batch: Batch, compiler: Callable[..., Callable[..., Tensor]]
) -> Candidate:
    """Training and inference of `model`, which both use, run through `compiler`."""
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

    return Candidate(train, infer)


def optimizer_of(config: Config, model: nn.Module) -> torch.optim.AdamW:
    """AdamW as `training/optimizer.py` sets it up: decay on the weights of linear layers only."""
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
