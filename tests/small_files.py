"""Small files in the layouts of public sets."""

import numpy as np


def digits(folder):
    """UCI Multiple Features with six digits of each class."""
    rng, sizes = np.random.default_rng(0), {"fac": 216, "fou": 76, "kar": 64, "mor": 6}
    for view, size in (sizes | {"pix": 240, "zer": 47}).items():
        rows = [[*range(size + 1)]] + [[*rng.normal(size=size), i // 6] for i in range(60)]
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        (folder / f"mfeat-{view}.csv").write_text(text)
    return str(folder)


def utterances(folder):
    """Japanese Vowels of nine speakers."""
    rng = np.random.default_rng(0)
    head = [
        "@problemName JapaneseVowels",
        "@dimensions 12",
        "@equalLength false",
        "@classLabel true 1 2 3 4 5 6 7 8 9",
        "@data",
    ]
    for role in ("TRAIN", "TEST"):
        lines = [
            ":".join([",".join(map(str, rng.normal(size=7 + i % 9))) for _ in range(12)])
            + f":{i % 9 + 1}"
            for i in range(54)
        ]
        path = folder / f"JapaneseVowels_{role}.ts"
        path.write_text("\n".join([*head, *lines]) + "\n")
    return str(folder)
