"""Script that runs one artefact with its runtime alone, on one thread.

    python -P run_artefact.py stablehlo|onnx ARTEFACT INPUTS.npz OUTPUTS.npz ROWS

Writes the outputs, computed `ROWS` samples at a time, and a line of JSON. Then it reads numbers of
calls from standard input, one per line, and answers each with the seconds of every call on the
first sample. At the end of the input it reports its peak memory.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

FORBIDDEN = ("sft_jax", "flax", "optax", "orbax", "grain", "torch", "tensorflow", "jax2onnx")


def open_stablehlo(path):
    """Opens a StableHLO artefact as a function of a dict of arrays."""
    import jax
    import jax.export
    import numpy as np

    call = jax.jit(jax.export.deserialize(bytearray(Path(path).read_bytes())).call)
    return lambda arrays: {name: np.asarray(x) for name, x in call(arrays).items()}


def open_onnx(path, rows):
    """Opens an ONNX file as a function of a dict of arrays, optimised for `rows` of 1."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if rows == 1:
        options.add_free_dimension_override_by_name("b", 1)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(names, arrays), strict=True))


def memory(entry):
    """Current (`VmRSS`) or peak (`VmHWM`) bytes of this process; 0 if the system does not tell."""
    status = Path("/proc/self/status")
    match = status.exists() and re.search(rf"{entry}:\s*(\d+) kB", status.read_text())
    return 1024 * int(match[1]) if match else 0


def main(kind, artefact, inputs, outputs, rows):
    """Runs the script; see the module's docstring."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent process reports it
    forbidden = FORBIDDEN if kind == "stablehlo" else (*FORBIDDEN, "jax", "jaxlib")
    for name in forbidden:  # makes its import fail
        sys.modules[name] = None  # type: ignore[assignment]  # as documented for this use
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import numpy as np

    __import__("jax.export" if kind == "stablehlo" else "onnxruntime")
    runtime = memory("VmRSS")
    with np.load(inputs) as file:
        arrays = {name: file[name] for name in file.files}
    one = {name: x[:1] for name, x in arrays.items()}
    size, rows = len(next(iter(arrays.values()))), int(rows)
    start = time.perf_counter()
    call = open_stablehlo(artefact) if kind == "stablehlo" else open_onnx(artefact, rows)
    call(one)
    ready = time.perf_counter() - start
    parts = [
        call({name: x[i : i + rows] for name, x in arrays.items()}) for i in range(0, size, rows)
    ]
    joined: dict[str, Any] = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    np.savez(outputs, **joined)
    print(json.dumps({"ready_seconds": ready, "runtime_bytes": runtime}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call(one)
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)
    print(json.dumps({"peak_bytes": memory("VmHWM")}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
