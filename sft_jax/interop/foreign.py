"""Exported programs of others: read without trust, and refused unless they hold nothing but sums.

An artefact is a program. `jax.export` reads one without running anything, and XLA then runs what
stands in it: arithmetic on the arrays it is given, unless it calls out, by a custom call, to code
in this process. Those are what is looked for here.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export

from sft_jax.types import DataError

# What an artefact of this package holds: sizes that are compared when the batch is known.
HARMLESS = frozenset({"shape_assertion"})
LARGEST_FILE = 2 * 2**30
# As MLIR prints a call, and as it prints one whose form it does not know.
_CALLED = re.compile(r'custom_call @"?([^\s"(]+)|call_target_name = "([^"]*)"')


def open_stablehlo(path: str | Path) -> Callable[[Mapping[str, Any]], Any]:
    """What an artefact of StableHLO computes, as a function of its arrays by name.

    Args:
        path: of the file.

    Returns:
        A function to be compiled where it is first called.

    Raises:
        DataError: no artefact, one that is damaged, or one that calls code outside of it.
    """
    path = Path(path).expanduser()
    remedy = "export the run again with `python -m sft_jax.export`"
    if not path.is_file() or path.stat().st_size > LARGEST_FILE:
        raise DataError(
            f"{path}: found no file of at most {LARGEST_FILE} bytes, expected an artefact; {remedy}"
        )
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
        text = exported.mlir_module()
    # Flatbuffers and MLIR raise whatever they stumble over.
    except Exception as error:
        raise DataError(
            f"{path}: found no program of jax.export ({type(error).__name__}: {str(error)[:200]}), "
            f"expected a .stablehlo file; {remedy}"
        ) from error
    calls = _CALLED.findall(text)
    found = {name for pair in calls for name in pair if name} - HARMLESS
    if text.count("custom_call") > len(calls):
        found.add("what has no name")
    found |= {str(effect) for effect in (*exported.ordered_effects, *exported.unordered_effects)}
    if found:
        raise DataError(
            f"{path}: found calls to {', '.join(sorted(found))}, expected none but to "
            f"{', '.join(HARMLESS)}, since they run code that is not in the file; do not run it, "
            f"or {remedy}"
        )
    return jax.jit(exported.call)
