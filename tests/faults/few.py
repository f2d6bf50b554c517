"""A few faults in one run: `python -m tests.faults.few FOLDER` prints what they came to."""

import dataclasses
import json
import random
import signal
import sys
from pathlib import Path

from tests.faults import damage, kills
from tests.faults.bench import Bench, checkpoints
from tests.faults.verdict import judged

STEPS = 12


def main(root: Path):
    """Killed after a save, in a save, and in a restore; then a bit of its checkpoint flips."""
    bench, workdir, rng = Bench(root, STEPS), root / "run", random.Random(1)
    bench.midway(workdir)
    saved = checkpoints(workdir, "last")
    lives = [
        bench.train(workdir, before=before).wait()
        for before in (kills.in_restore(0.05), kills.before_event(workdir, 10))
    ]
    newest = workdir / "checkpoints" / "last" / str(checkpoints(workdir, "last")[-1])
    damage.damage(next((newest / "state" / "d").iterdir()), "flipped", rng)
    verdict = judged(bench, "few", workdir, lambda: None)
    killed = sum(life.code == -signal.SIGKILL for life in lives)
    answer = {
        "saved": saved,
        "killed": killed,
        "put aside": [path.name for path in newest.parent.glob("*.damaged")],
        "verdict": dataclasses.asdict(verdict),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
