"""Exported programs of others: read without trust, and refused unless they hold nothing but sums.

An artefact is a program. `jax.export` reads one without running anything, and XLA then runs what
stands in it: arithmetic on the arrays it is given, unless it calls out, by a custom call, to code
in this process. Those are what is looked for here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export

from sft_jax.interop.artefacts import called_operations
from sft_jax.types import DataError

# What an artefact of this package holds: sizes that are compared when the batch is known.
HARMLESS = frozenset({"shape_assertion"})
LARGEST_FILE = 2 * 2**30
_AGAIN = "export the run again with `python -m sft_jax.export`"


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
    program = deserialized(path)
    command = [sys.executable, "-P", called_operations.__file__, str(path.absolute())]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
        raise DataError(
            f"{path}: found no program that can be read (its reader ended with status "
            f"{done.returncode}: {why}), expected StableHLO; {_AGAIN}"
        )
    found = set(json.loads(done.stdout.splitlines()[-1])) - HARMLESS
    if found:
        raise DataError(
            f"{path}: found calls to {', '.join(sorted(found))}, expected none but to "
            f"{', '.join(HARMLESS)}, since they run code that is not in the file; do not run it, "
            f"or {_AGAIN}"
        )
    return jax.jit(program.call)


def deserialized(path: Path) -> jax.export.Exported:
    """What an artefact says of itself; its program is not looked at.

    Raises:
        DataError: no artefact, or one that is damaged.
    """
    if not path.is_file() or path.stat().st_size > LARGEST_FILE:
        raise DataError(
            f"{path}: found no file of at most {LARGEST_FILE} bytes, expected an artefact; {_AGAIN}"
        )
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    # Flatbuffers raise whatever they stumble over.
    except Exception as error:
        raise DataError(
            f"{path}: found no program of jax.export ({type(error).__name__}: {str(error)[:200]}), "
            f"expected a .stablehlo file; {_AGAIN}"
        ) from error
