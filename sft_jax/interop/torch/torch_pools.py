"""Pools of the models in PyTorch, with the same tokens and masks."""

import torch
from torch import Tensor

from sft_jax.config.modality import ModalitySpec

POOLS = ("max", "avg", "attn_topk")


def pool(
    tokens: Tensor, mask: Tensor | None, saliency: Tensor | None, spec: ModalitySpec
) -> tuple[Tensor, Tensor | None]:
    """Returns the pooled tokens `[b, k, d]` and their mask `[b, k]`.

    Args:
        tokens: Tokens `[b, t, d]` without CLS.
        mask: `[b, t]`, true for tokens that are not padding; None without padding, and then None is
            returned too.
        saliency: Saliency `[b, t]` for `attn_topk`.
        spec: Modality with one of `POOLS`.
    """
    if spec.pool == "attn_topk":
        return _top(tokens, mask, saliency, spec.count)
    if mask is None:
        count = tokens.shape[1] // spec.stride
        windows = tokens[:, : count * spec.stride].unflatten(1, (count, spec.stride))
        return (windows.amax(dim=2) if spec.pool == "max" else windows.mean(dim=2)), None
    windows, real = _windows(tokens, mask, spec.stride)
    pooled_mask = real.any(dim=2)
    if spec.pool == "max":
        lowest = torch.finfo(tokens.dtype).min
        pooled = torch.where(real[..., None], windows, lowest).amax(dim=2)
    else:
        total = torch.where(real[..., None], windows, 0).sum(dim=2)
        pooled = total / real.sum(dim=2).clamp(min=1)[..., None]
    return torch.where(pooled_mask[..., None], pooled, 0), pooled_mask


def saliency_of(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Returns each key's mean attention weight over heads and unmasked queries, `[b, t]`.

    The fused attention does not return its map, so it is computed again here, one sample at a time
    to limit memory.

    Args:
        query: Queries `[b, h, t + 1, e]` with CLS in front.
        key: Keys `[b, h, t + 1, e]` with CLS in front.
        mask: `[b, t]`, true for tokens that are not padding; None without padding.
    """
    columns = []
    for i in range(query.shape[0]):
        scores = query[i, :, 1:] @ key[i].mT * query.shape[-1] ** -0.5  # [h, t, t + 1]
        if mask is None:
            columns.append(scores.softmax(dim=-1).mean(dim=(0, 1)))
            continue
        scores[..., 1:].masked_fill_(~mask[i], float("-inf"))
        rows = mask[i].to(scores.dtype) / mask[i].sum().clamp(min=1)
        columns.append(torch.einsum("hqk,q->k", scores.softmax(dim=-1), rows) / scores.shape[0])
    return torch.stack(columns)[:, 1:]


def _top(tokens, mask, saliency, k):
    score = saliency if mask is None else saliency.masked_fill(~mask, float("-inf"))
    indices = score.topk(k, dim=1).indices
    pooled = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))
    if mask is None:
        return pooled, None
    pooled_mask = mask.gather(1, indices)
    return torch.where(pooled_mask[..., None], pooled, 0), pooled_mask


def _windows(tokens, mask, window):
    """Windows `[b, k, w, d]` over the unmasked tokens in order, and the mask `[b, k, w]`."""
    k = mask.shape[1] // window
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, : k * window]
    count = mask.sum(dim=1)
    num_windowed = (count // window).clamp(min=1) * window
    position = torch.arange(k * window, device=mask.device)
    real = position < torch.minimum(count, num_windowed)[:, None]
    tokens = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))
    return tokens.unflatten(1, (k, window)), real.unflatten(1, (k, window))
