"""Script that lists calls from a StableHLO artefact to code outside of it, as a line of JSON.

    python -P called_operations.py ARTEFACT

It runs in a separate process because MLIR's parser may abort on a malformed file.
"""

import json
import re
import sys
from pathlib import Path

# Calls in MLIR's short and generic form.
CALLED = re.compile(r'custom_call @"?([^\s"(]+)|call_target_name = "([^"]*)"')


def main(path):
    """Prints the names of custom calls and effects of an artefact."""
    import jax.export

    exported = jax.export.deserialize(bytearray(Path(path).read_bytes()))
    text = exported.mlir_module()
    calls = CALLED.findall(text)
    names = {name for pair in calls for name in pair if name}
    if text.count("custom_call") > len(calls):
        names.add("unnamed custom calls")
    names |= {str(effect) for effect in (*exported.ordered_effects, *exported.unordered_effects)}
    print(json.dumps(sorted(names)))


if __name__ == "__main__":
    main(*sys.argv[1:])
