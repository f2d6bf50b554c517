"""Prints the licences of what sft_jax needs as a page, from what is installed.

Ends with an error where a licence is not told, is none of `KNOWN`, or asks for the source of what
uses a package: each may be used beside Apache-2.0, in closed products, too.
"""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution

from packaging.requirements import Requirement

# SPDX identifier, without a version where several are in use -> how metadata spell it.
KNOWN = {
    "Apache-2.0": r"apache",
    "BSD": r"bsd|kiwi licensing",
    "HPND or MIT-CMU": r"hpnd|mit-cmu",
    "ISC": r"isc license",
    "MIT": r"\bmit\b(?!-)",
    "MPL-2.0": r"mpl|mozilla",
    "PSF-2.0": r"psf|python software foundation|matplotlib",
}
ASKS_FOR_SOURCE = r"\b[al]?gpl|general public"
PAGE = """# Licences

sft_jax stands under Apache-2.0 (its file `LICENSE`). What it needs stands under these, by the
metadata of the packages. `make licences` writes this page from what is installed, without a
network, and fails where a licence is not told, or is none of these.

{table}
"""


def needed(name: str, extra: str = "") -> Iterator[Distribution]:
    """What a distribution needs here, itself first."""
    seen, waiting = set(), [(name, extra)]
    while waiting:
        name, extra = waiting.pop()
        key = (re.sub(r"[-_.]+", "-", name).lower(), extra)
        if key in seen:
            continue
        seen.add(key)
        found = distribution(name)
        yield found
        for line in found.requires or ():
            requirement = Requirement(line)
            # Without an extra, what belongs to none; with it, what belongs to that one.
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, part) for part in ("", *requirement.extras)]


def licences(found: Distribution) -> set[str]:
    """By the licence expression; else by the field, if it is no whole text; else by classifiers."""
    about = found.metadata
    kinds = [c.split("::")[-1] for c in about.get_all("Classifier", ()) if c.startswith("License")]
    field = (about.get("License") or "").strip()
    told = about.get("License-Expression") or " ".join(kinds) or field.partition("\n")[0]
    if re.search(ASKS_FOR_SOURCE, told, re.IGNORECASE):
        return set()
    return {name for name, pattern in KNOWN.items() if re.search(pattern, told, re.IGNORECASE)}


def main():
    """Prints the page, or says whose licence is not known."""
    core = {found.name: licences(found) for found in needed("sft_jax")}
    tests = {found.name: licences(found) for found in needed("sft_jax", "test")}
    if unknown := sorted(name for name, under in {**core, **tests}.items() if not under):
        sys.exit(f"licences: none of {', '.join(KNOWN)} by the metadata of {', '.join(unknown)}")
    rows = []
    for name in KNOWN:
        own = {package for package, under in core.items() if name in under}
        more = {package for package, under in tests.items() if name in under} - core.keys()
        if own or more:
            cells = (", ".join(sorted(packages, key=str.lower)) for packages in (own, more))
            rows.append(f"| {name} | {' | '.join(cells)} |")
    header = ["| licence | needed by sft_jax | by its tests beside |", "|---|---|---|"]
    print(PAGE.format(table="\n".join([*header, *rows])), end="")


if __name__ == "__main__":
    main()
