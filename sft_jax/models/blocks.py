"""How a block is put into a model: what it recomputes, and where its parameters come from.

Both are lifted around the block, so that neither names nor shapes of parameters change.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import flax.linen as nn
import jax

Module = TypeVar("Module", bound=nn.Module)
# From the path of a parameter and this device's part of it to the whole.
Gather = Callable[[str, jax.Array], jax.Array]

_SAVED = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
# Part of the key that JAX caches traces by, so that no trace without gathers is taken up.
_gathering = jax.make_user_context(None)
# What `make_block` is called for: the names that models give to their blocks.
_BLOCKS = re.compile(r"(^|/)(pooling|(block|first)(_\w+)?)/")


def make_block(
    parent: nn.Module, kind: type[Module], *fields: Any, name: str, loop: bool = False
) -> Module:
    """A block of `parent`, which recomputes what `ModelConfig.remat` says.

    Inside `gather_in_blocks` it brings its parameters together when it runs, and again where it
    is recomputed, so that only those of a few blocks are whole at a time.

    Args:
        parent: the module that calls this in its compact method.
        kind: a class whose `__call__` takes arrays, or None, alone.
        *fields: of the class, a `BlockConfig` being the last.
        name: of the block.
        loop: whether it is the body of a scan, where the compiler cannot merge the second
            computation with the first and need not be kept from it.
    """
    if gather := _gathering.value:
        path = "/".join((*parent.path, name))

        def whole(variables):
            return {"params": _gathered(variables["params"], gather, path)}

        kind = nn.map_variables(kind, "params", whole)
    if (remat := fields[-1].remat) != "none":
        kind = nn.remat(kind, prevent_cse=not loop, policy=_SAVED[remat])
    return kind(*fields, name=name)


@contextlib.contextmanager
def gather_in_blocks(params: Any, gather: Gather) -> Iterator[Any]:
    """While a model is traced inside, its blocks gather their own parameters.

    Yields:
        `params` with those of blocks as they were and all others whole.
    """
    with _gathering(gather):
        yield _gathered(params, lambda path, x: x if _BLOCKS.search(path) else gather(path, x))


def _gathered(params: Any, gather: Gather, prefix: str = "") -> Any:
    def whole(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return gather(f"{prefix}/{name}" if prefix else name, x)

    return jax.tree_util.tree_map_with_path(whole, params)
