"""The tiny run that faults are injected into, and what it comes to when nothing disturbs it."""

import dataclasses
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sft_jax.config.data import ArraysOptions, DataConfig, SyntheticOptions
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import UnimodalOptions
from sft_jax.config.run import (
    AugmentConfig,
    Config,
    Duration,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from sft_jax.runs import run_files
from sft_jax.tasks import from_run
from sft_jax.training import session, sharding
from sft_jax.training.trainer import Trainer
from tests.faults.lives import Ended, Life, settle_devices

STEPS = 80
KINDS = ("last", "best")


def tiny_config(data: DataConfig, steps: int = STEPS) -> Config:
    """Random jitter, a plateau rule and a ragged last batch: all that must survive a resume.

    A model without a block is traced in a third of the time, which is what most lives are made of.
    """
    return Config(
        modalities=(ModalitySpec(name="m0", length=6, feature_dim=3, k=2),),
        model=ModelConfig(
            name="unimodal",
            embed_dim=8,
            num_heads=2,
            num_pre_layers=0,
            num_post_layers=0,
            options=UnimodalOptions(window=3),
        ),
        augment=AugmentConfig(jitter=0.5),
        data=data,
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="plateau", plateau_patience=1),
        train=TrainConfig(
            batch_size=8,
            seed=3,
            duration=Duration(steps, "steps"),
            eval_every=Duration(10, "steps"),
            checkpoint_every=Duration(2, "steps"),
            log_every=5,
        ),
    )


def synthetic(data_dir: Path) -> DataConfig:
    """A few random sequences."""
    options = SyntheticOptions(
        lengths=(6,), feature_dims=(3,), num_train=37, num_valid=11, num_test=5
    )
    return DataConfig(source="synthetic", data_dir=str(data_dir), options=options)


def arrays(data_dir: Path, file: Path) -> DataConfig:
    """The user's own file."""
    options = ArraysOptions(path=str(file))
    return DataConfig(source="arrays", data_dir=str(data_dir), options=options)


def write_arrays(file: Path, seed: int):
    """A file that `arrays` reads."""
    rng = np.random.default_rng(seed)
    label = np.arange(60) % 4
    values = rng.normal(size=(60, 6, 3)) + label[:, None, None]
    np.savez(file, m0=values.astype(np.float32), label=label)


@dataclasses.dataclass(frozen=True)
class End:
    """What a run came to.

    Attributes:
        states: by `last` and `best`, the step and a digest of all arrays of the checkpoint.
        records: of `metrics.jsonl`, without what depends on the clock.
    """

    states: dict[str, Any]
    records: list[dict[str, Any]]


class Bench:
    """Starts lives, with data and compiled programs that are shared, and judges runs.

    Attributes:
        root: everything is written below it.
        cache: folder of compiled programs.
        config: of the tiny run.
        seconds: processors' time that a life takes to its first checkpoint (`warm`).
    """

    def __init__(self, root: Path, steps: int = STEPS):
        """Everything is written below `root`."""
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.cache = root / "programs"
        self.config = tiny_config(synthetic(root / "data"), steps)
        self.seconds = 4.0

    def train(
        self,
        workdir: Path,
        config: Config | None = None,
        devices: int = 1,
        before: Callable[[], None] | None = None,
        cache: Path | None = None,
    ) -> Life:
        """Starts a training.

        Args:
            workdir: of the run.
            config: the tiny run's if not given.
            devices: to train on.
            before: called in the child just before it trains.
            cache: of compiled programs, if it is not to be the shared one.
        """

        def act():
            settle_devices(devices, cache or self.cache)
            if before is not None:
                before()
            outcome = session.train(config or self.config, workdir)
            print("finished" if outcome.finished else "stopped", "at step", outcome.step)

        return Life(act, self.log(workdir))

    def undisturbed(
        self, name: str = "plain", train: Callable[[Path], Any] | None = None
    ) -> tuple[Path, End]:
        """A run that nothing happens to, made by the first who asks.

        Args:
            name: of the run.
            train: trains to the end in the folder it is given; one life if not given.
        """

        def make(folder):
            if train is None:
                finish(self.train(folder))
            else:
                train(folder)
            return dataclasses.asdict(self.end(folder))

        folder, end = self._once(f"undisturbed_{name}", make)
        return folder, End(**end)

    def midway(self, workdir: Path):
        """Puts a run there that was killed when three quarters of it were done."""

        def make(folder):
            goal = self.config.train.duration.to_steps(1) * 3 // 4
            until_saved(self.train(folder), folder, goal).wait()

        folder, _ = self._once("midway", make)
        shutil.copytree(folder, workdir)

    def _once(self, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
        """A folder that is made by the first who asks, and what making it returned."""
        folder, done = self.root / name, self.root / f"{name}.json"
        with (self.root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                done.write_text(json.dumps(make(folder)))
        return folder, json.loads(done.read_text())

    def log(self, workdir: Path) -> Path:
        """Where the lives of a run write what they say: not on a disk that may be full."""
        name = "_".join(workdir.relative_to(self.root).parts)
        return self.root / "logs" / f"{name}.log"

    def warm(self):
        """Compiles what lives need, and sees how long one takes to its first checkpoint."""
        straight, _ = self.undisturbed()
        workdir = shutil.copytree(straight, self.root / "warm")
        # A resumed run has small programs of its own.
        saved = checkpoints(workdir, "last")
        shutil.rmtree(workdir / "checkpoints" / "last" / str(saved[-1]))
        life = self.train(workdir)
        while life.poll() is None and checkpoints(workdir, "last") != saved:
            self.seconds = life.seconds()
            time.sleep(0.005)
        finish(life)

    def distance(self, workdir: Path, other: Path) -> float:
        """Largest difference between the parameters that two runs came to."""
        answer = workdir.parent / f"{workdir.name}.distance"

        def act():
            settle_devices(1, None)
            one, two = (_state(folder, "last").params for folder in (workdir, other))
            answer.write_text(json.dumps(max(jax.tree.leaves(_apart(one, two)))))

        finish(Life(act, self.log(workdir)))
        return json.loads(answer.read_text())

    def end(self, workdir: Path, kinds: tuple[str, ...] = KINDS) -> End:
        """Reads in a process of its own what a run came to.

        Raises:
            AssertionError: with what that process said when it could not.
        """
        answer = workdir.parent / f"{workdir.name}.end"

        def act():
            settle_devices(1, None)
            answer.write_text(json.dumps(_digests(workdir, kinds)))

        finish(Life(act, self.log(workdir)))
        states = json.loads(answer.read_text())
        answer.unlink()
        return End(states, records(workdir))


def finish(life: Life) -> Ended:
    """Waits for a life that has to end well.

    Raises:
        AssertionError: it did not.
    """
    ended = life.wait()
    assert ended.code == 0, f"ended with {ended.code}: {ended.last_words}"
    return ended


def until_saved(life: Life, workdir: Path, step: int) -> Life:
    """Kills a life once the checkpoint of a step or a later one is there."""
    while life.poll() is None and max(checkpoints(workdir, "last"), default=0) < step:
        time.sleep(0.005)
    life.kill()
    return life


def checkpoints(workdir: Path, kind: str) -> list[int]:
    """Steps that are saved whole, in order."""
    folder = workdir / "checkpoints" / kind
    try:
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    except FileNotFoundError:
        return []


def records(workdir: Path) -> list[dict[str, Any]]:
    """Records of a run's log, without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key != "samples_per_second"}
        for line in lines
    ]


def differences(got: End, expected: End, whole_windows: bool = True) -> list[str]:
    """In what two runs differ; nothing where they ended equal, bit for bit.

    Args:
        got: of the disturbed run.
        expected: of the undisturbed one.
        whole_windows: false where training was stopped in between, which cuts a window that losses
            are averaged over in two: then the windows that are in both must be equal.
    """
    found = [
        f"{kind}: {got.states[kind]} instead of {expected.states[kind]}"
        for kind in got.states
        if got.states[kind] != expected.states[kind]
    ]
    if whole_windows:
        pairs = list(zip(got.records, expected.records, strict=False))
        if len(got.records) != len(expected.records):
            found.append(f"{len(got.records)} records instead of {len(expected.records)}")
    else:
        one, other = _windows(got.records), _windows(expected.records)
        missing = [key for key in other if key[0] == "valid" and key not in one]
        found += [f"no record of {key}" for key in missing]
        pairs = [(one[key], other[key]) for key in one.keys() & other.keys()]
    return found + [f"{a} instead of {b}" for a, b in pairs if a != b][:2]


def _windows(lines: list[dict[str, Any]]) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Records by their kind and the steps that they speak of."""
    found, before = {}, {"train": 0, "valid": 0}
    for line in lines:
        kind, step = line["kind"], line["step"]
        found[kind, before[kind] if kind == "train" else 0, step] = line
        before[kind] = step
    return found


def _digests(workdir: Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for kind in kinds:
        state = _state(workdir, kind)
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            leaf = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} ".encode())
            digest.update(leaf.tobytes())
        found[kind] = [int(state.step), digest.hexdigest()[:16]]
    return found


def _state(workdir: Path, kind: str) -> Any:
    config = run_files.read_config(workdir)
    mesh = sharding.make_mesh(config.train, jax.devices()[:1])
    trainer = Trainer.of(config, from_run(config, run_files.read_data(workdir)), 1, mesh)
    return jax.device_get(session.restore(trainer, workdir, kind))


def _apart(one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, other)
