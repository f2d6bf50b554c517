"""Reader of StableHLO artefacts from untrusted sources.

`jax.export` reads a program without running it. XLA then runs arithmetic on the given arrays,
unless the program has a custom call, which runs other code in this process. Such programs are
refused.
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

# Custom calls in artefacts of this package: size checks once the batch size is known.
HARMLESS = frozenset({"shape_assertion"})
LARGEST_FILE = 2 * 2**30
_REMEDY = "export the run again with `python -m sft_jax.export`"


def open_stablehlo(path: str | Path) -> Callable[[Mapping[str, Any]], Any]:
    """Opens a StableHLO artefact as a function.

    Args:
        path: Path of the file.

    Returns:
        A function of a dict of arrays, compiled at the first call.

    Raises:
        DataError: The file is not an artefact, is damaged, or calls code outside of it.
    """
    path = Path(path).expanduser()
    program = deserialized(path)
    command = [sys.executable, "-P", called_operations.__file__, str(path.absolute())]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1][:300]
        raise DataError(
            f"{path}: found no readable program (the reader ended with status "
            f"{process.returncode}: {reason}), expected StableHLO; {_REMEDY}"
        )
    calls = set(json.loads(process.stdout.splitlines()[-1])) - HARMLESS
    if calls:
        raise DataError(
            f"{path}: found calls to {', '.join(sorted(calls))}, expected only "
            f"{', '.join(HARMLESS)}, since others run code that is not in the file; do not run it, "
            f"or {_REMEDY}"
        )
    return jax.jit(program.call)


def deserialized(path: Path) -> jax.export.Exported:
    """Reads an artefact without checking its program for calls.

    Args:
        path: Path of the file.

    Raises:
        DataError: The file is not an artefact, or is damaged.
    """
    if not path.is_file() or path.stat().st_size > LARGEST_FILE:
        raise DataError(
            f"{path}: found no file of at most {LARGEST_FILE} bytes, expected one; {_REMEDY}"
        )
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    # Reading a malformed flatbuffer may raise any exception.
    except Exception as error:
        raise DataError(
            f"{path}: found no program of jax.export ({type(error).__name__}: {str(error)[:200]}), "
            f"expected a .stablehlo file; {_REMEDY}"
        ) from error
