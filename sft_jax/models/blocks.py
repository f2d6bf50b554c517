"""Construction of the blocks of a model: rematerialization and parameter gathering.

Both are applied as transformations of the block's class, so that names and shapes of parameters do
not depend on them.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import flax.linen as nn
import jax

Module = TypeVar("Module", bound=nn.Module)
# From the path of a parameter and this device's shard of it to the full parameter.
Gather = Callable[[str, jax.Array], jax.Array]

# Names of blocks, possibly followed by an underscore and the name or index of what they encode.
BLOCK_NAMES = ("block", "first", "pooling")
_POLICIES = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
# Part of JAX's trace cache key, so that a trace made without gathering is not reused.
_gathering = jax.make_user_context(None)


def make_block(
    parent: nn.Module, kind: type[Module], *fields: Any, name: str, loop: bool = False
) -> Module:
    """Creates a block that rematerializes as `ModelConfig.remat` says.

    Inside `gather_in_blocks` the block gathers its own parameters when it runs, and again when it
    is recomputed, so that only the parameters of a few blocks are gathered at any time.

    Args:
        parent: Module that calls this function in its compact method.
        kind: Class of the block, whose `__call__` takes only arrays or None.
        *fields: Fields of the class; the last one is a `BlockConfig`.
        name: Name of the block, which begins with one of `BLOCK_NAMES`.
        loop: Whether the block is the body of a scan, where XLA cannot merge the recomputation with
            the first computation and need not be prevented from doing so.

    Raises:
        ValueError: The name is not that of a block.
    """
    if not _is_block(name):
        raise ValueError(
            f"block {name!r}: expected a name that begins with one of {', '.join(BLOCK_NAMES)}; "
            "rename it, or add the name to BLOCK_NAMES"
        )
    if gather := _gathering.value:
        path = "/".join((*parent.path, name))

        def gather_params(variables):
            return {"params": _gathered(variables["params"], gather, path)}

        kind = nn.map_variables(kind, "params", gather_params)
    if (remat := fields[-1].remat) != "none":
        kind = nn.remat(kind, prevent_cse=not loop, policy=_POLICIES[remat])
    return kind(*fields, name=name)


def _is_block(name: str) -> bool:
    return name.partition("_")[0] in BLOCK_NAMES


@contextlib.contextmanager
def gather_in_blocks(params: Any, gather: Gather) -> Iterator[Any]:
    """Lets the blocks of a model that is traced inside gather their own parameters.

    Yields:
        `params`, in which those of blocks are still sharded and all others are gathered.
    """

    def gather_outside(path: str, x: jax.Array) -> jax.Array:
        return x if any(map(_is_block, path.split("/")[:-1])) else gather(path, x)

    with _gathering(gather):
        yield _gathered(params, gather_outside)


def _gathered(params: Any, gather: Gather, prefix: str = "") -> Any:
    def gather_one(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return gather(f"{prefix}/{name}" if prefix else name, x)

    return jax.tree_util.tree_map_with_path(gather_one, params)
