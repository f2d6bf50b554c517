"""Runs one artefact with its runtime and nothing else; a program of its own, started by its path.

    python -P artefact_process.py stablehlo|onnx ARTEFACT INPUTS.npz OUTPUTS.npz ROWS

Writes what the artefact makes of the inputs, `ROWS` at a time, and a line of JSON. Then it takes
numbers of calls, one a line, and answers each with the seconds that every call on the first row
took; at the end of its input it says how much memory it ever held. One thread.
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
    """A function of a dict of arrays, from what `jax.export` wrote."""
    import jax
    import jax.export
    import numpy as np

    call = jax.jit(jax.export.deserialize(bytearray(Path(path).read_bytes())).call)
    return lambda arrays: {name: np.asarray(x) for name, x in call(arrays).items()}


def open_onnx(path, rows):
    """The same from an ONNX file, in onnxruntime; laid out for one sample where that is all."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if rows == 1:
        options.add_free_dimension_override_by_name("b", 1)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(names, arrays), strict=True))


def memory(entry):
    """Bytes that this process holds (`VmRSS`) or has ever held (`VmHWM`); 0 where nobody says."""
    status = Path("/proc/self/status")
    found = status.exists() and re.search(rf"{entry}:\s*(\d+) kB", status.read_text())
    return 1024 * int(found[1]) if found else 0


def main(kind, artefact, inputs, outputs, rows):
    """See the module."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # who started it says what was interrupted
    forbidden = FORBIDDEN if kind == "stablehlo" else (*FORBIDDEN, "jax", "jaxlib")
    for name in forbidden:  # importing one of them fails from here on
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
    found: dict[str, Any] = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    np.savez(outputs, **found)
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
