"""Says what a StableHLO artefact calls outside of it; a program of its own, started by its path.

    python -P artefact_calls.py ARTEFACT

Writes a line of JSON: names of calls, of effects, and `unnamed`. MLIR's parser may end the process
on a file that is not what it should be, so it is not ours.
"""

import json
import re
import sys
from pathlib import Path

# As MLIR prints a call, and as it prints one whose form it does not know.
CALLED = re.compile(r'custom_call @"?([^\s"(]+)|call_target_name = "([^"]*)"')


def main(path):
    """See the module."""
    import jax.export

    exported = jax.export.deserialize(bytearray(Path(path).read_bytes()))
    text = exported.mlir_module()
    calls = CALLED.findall(text)
    found = {name for pair in calls for name in pair if name}
    if text.count("custom_call") > len(calls):
        found.add("what has no name")
    found |= {str(effect) for effect in (*exported.ordered_effects, *exported.unordered_effects)}
    print(json.dumps(sorted(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
