"""A few faults in one run: `python -m tests.faults.few FOLDER` prints what they came to."""

import dataclasses
import json
import random
import sys
from pathlib import Path

from tests.faults import damage, kills
from tests.faults.bench import Bench, checkpoints
from tests.faults.verdict import judged

STEPS = 8


def main(root: Path):
    """Killed in a save and in a restore; then a bit of its checkpoint flips."""
    bench, workdir, rng = Bench(root, STEPS), root / "run", random.Random(1)
    kept, lives = [], []
    third = workdir / "checkpoints" / "last" / "6"
    for before in (kills.before_event(third, 10), kills.in_restore(0.01)):
        lives.append(bench.train(workdir, before=before).wait())
        kept.append(checkpoints(workdir, "last"))
    newest = workdir / "checkpoints" / "last" / str(kept[-1][-1])
    damage.damage(next((newest / "state" / "d").iterdir()), "flipped", rng)
    verdict = judged(bench, "few", workdir, lambda: None)
    answer = {
        "kept": kept,
        "codes": [life.code for life in lives],
        "by itself": [kills.by_itself(life) for life in lives],
        "put aside": [path.name for path in newest.parent.glob("*.damaged")],
        "verdict": dataclasses.asdict(verdict),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
