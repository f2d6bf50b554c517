"""Checkpoints: the newest few and the best one, each written whole or not at all (Orbax)."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from sft_jax.files.checksums import (
    find_damage,
    has_checksums,
    is_damage,
    move_aside,
    write_checksums,
)
from sft_jax.files.errors import is_disk_error
from sft_jax.runs.schema import accepted
from sft_jax.training.progress import Progress
from sft_jax.training.state import TrainState, differences
from sft_jax.types import CheckpointError

# How often a checkpoint may be replaced while it is read before that is taken for its fault.
_MOST_REPLACED = 4
# What Orbax, TensorStore and the parsers below them raise on files that are not what they should
# be. Not among them: errors of the devices, such as a memory that is full.
_UNREADABLE = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError),
    *(OSError, NotImplementedError, RecursionError),
)


class Checkpoints:
    """The `checkpoints/last` and `checkpoints/best` folders of a run.

    Saves run in the background; each becomes visible under its step only when it is complete.
    """

    def __init__(
        self,
        workdir: Path,
        keep: int = 2,
        read_only: bool = False,
        config: dict[str, Any] | None = None,
    ):
        """Opens the folders.

        Args:
            workdir: of the run.
            keep: newest checkpoints that stay in `last`.
            read_only: neither create the folders, nor move damaged ones aside, nor sweep away what
                an interrupted save left, since that may be the save of a training that still runs.
            config: saved inside every checkpoint, so that one taken out of its run says what it is.

        Raises:
            CheckpointError: the folders cannot be made, or what Orbax notes of a checkpoint is
                mangled.
        """
        self.root = Path(workdir).absolute() / "checkpoints"
        self._config, self._read_only = config or {}, read_only
        self._managers = {
            kind: _open(self.root / kind, count, read_only)
            for kind, count in (("last", keep), ("best", 1))
        }

    def save(self, kind: str, state: TrainState, progress: Progress):
        """Starts to save in the background.

        A step that is there already was written by the same run before, bit for bit the same (on
        other devices, to rounding), and stays. Later ones are gone back behind: they give way.

        Raises:
            CheckpointError: this one or the one before could not be written.
        """
        step, manager = int(jax.device_get(state.step)), self._managers[kind]
        if step in manager.all_steps():
            return
        with self._writing():
            if kind == "last":
                # Its progress names the best one, which must not be lost to an interruption.
                self._managers["best"].wait_until_finished()
            for later in [found for found in manager.all_steps() if found > step]:
                manager.delete(later)  # or Orbax would keep it and drop this one
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    progress=ocp.args.JsonSave(progress.to_json()),
                    config=ocp.args.JsonSave(self._config),
                ),
            )

    def latest(self, kind: str) -> int | None:
        """The newest step in a folder, or None."""
        return self._managers[kind].latest_step()

    def restore(self, kind: str, abstract: TrainState) -> tuple[TrainState, Progress]:
        """The newest whole checkpoint of a folder, put where `abstract` says.

        Damaged ones are named in a warning and, unless opened to read only, moved aside. One that
        a training replaces while it is read gives way to the new one.

        Raises:
            CheckpointError: there is none, all are damaged, or its parameters are not those of
                `abstract`.
        """
        for _ in range(_MOST_REPLACED):
            newest = self.latest(kind)
            step = self._agreed(lambda: self._choose(kind)).step
            try:
                return self._read(kind, step, abstract)
            except CheckpointError:
                # Of several processes, others may have read it.
                if jax.process_count() > 1 or self._steps(kind)[:1] in ([], [newest]):
                    raise
        return self._read(kind, self._choose(kind).step, abstract)

    def resume(self, abstract: TrainState) -> tuple[TrainState, Progress] | None:
        """Where training goes on: the newest whole checkpoint of `last`, or None to begin.

        A best one that is damaged is written again by the training that follows, which therefore
        goes on from before it.

        Raises:
            CheckpointError: as `restore`; or the best one is damaged and nothing is from before it.
        """
        chosen = self._agreed(self._choose_to_resume)
        if chosen.step < 0:
            return None
        state, progress = self._read("last", chosen.step, abstract)
        if progress.best is not None and chosen.best < 0:
            _warn(
                f"{self.root / 'best'}: found no checkpoint, expected the one of step "
                f"{progress.best_step}; the best of the validations still to come is kept"
            )
            progress = dataclasses.replace(progress, best=None, best_step=0)
        return state, progress

    def _read(self, kind: str, step: int, abstract: TrainState) -> tuple[TrainState, Progress]:
        folder = self.root / kind / str(step)
        try:
            if (folder / "config").is_dir():
                own = ocp.args.Composite(config=ocp.args.JsonRestore())
                accepted(self._managers[kind].restore(step, args=own).config, folder / "config")
            # Orbax finds a difference only while it reads, and then leaves reads in flight behind.
            different = differences(self._stored(kind, step), abstract)
            if different:
                raise ValueError("; ".join(different))
            restored = self._managers[kind].restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract),
                    progress=ocp.args.JsonRestore(),
                ),
            )
            return restored.state, Progress.from_json(restored.progress)
        except _UNREADABLE as error:
            if isinstance(error, OSError) and not is_damage(error):
                raise _not_now(folder, error) from error
            remedy = "remove this checkpoint to fall back on the one before it"
            if has_checksums(folder):
                remedy = "its files are as they were written: go on with the version that wrote it"
            raise CheckpointError(
                f"{folder}: could not be read as this configuration's model "
                f"({str(error)[:300]}); {remedy}, or train into a new workdir"
            ) from error

    def _stored(self, kind: str, step: int) -> Any:
        """What a checkpoint says of the arrays of its state."""
        try:
            return self._managers[kind].item_metadata(step)["state"]
        # Of a tree too deep, or names that are no text. No device is asked for anything here.
        except (RuntimeError, SystemError) as error:
            raise ValueError(str(error.__cause__ or error)) from error

    def _steps(self, kind: str) -> list[int]:
        """Steps in a folder as it is now, the newest first."""
        try:
            self._managers[kind].reload()
            return sorted(self._managers[kind].all_steps(), reverse=True)
        except _UNREADABLE as error:
            raise _unreadable(self.root / kind, error) from error

    def _damage(self, kind: str, step: int) -> str | None:
        folder = self.root / kind / str(step)
        try:
            return find_damage(folder)
        except OSError as error:
            raise _not_now(folder, error) from error

    def _choose(self, kind: str) -> "_Choice":
        """The newest whole step, after the damaged ones have been moved aside."""
        damaged: dict[int, str] = {}
        # Looked at anew each time: a training that runs removes old ones while they are read.
        while left := [step for step in self._steps(kind) if step not in damaged]:
            damage = self._damage(kind, left[0])
            if damage is None:
                self._set_aside(kind, damaged, f"step {left[0]} is used instead")
                return _Choice(left[0])
            damaged[left[0]] = damage
        raise self._none_whole(kind, damaged)

    def _choose_to_resume(self) -> "_Choice":
        best, last = self._steps("best"), self._steps("last")
        lost = self._damage("best", best[0]) if best else None
        damaged, whole = dict[int, str](), list[int]()
        for step in last:
            damage = self._damage("last", step)
            if damage is not None:
                damaged[step] = damage
            elif lost is not None and step >= best[0]:
                whole.append(step)
                damaged[step] = f"{self.root / 'last' / str(step)}: whole, but not before the best"
            else:
                break
        going_on = [step for step in last if step not in damaged]
        if last and not going_on:
            if lost is None or not whole:
                raise self._none_whole("last", damaged)
            raise CheckpointError(
                f"{lost}: this best checkpoint is damaged, no whole one in {self.root / 'last'} is "
                f"from before it; remove {best[0]} from {self.root / 'best'} to go on and keep the "
                f"best of the validations still to come, evaluate what there is (step {whole[0]}) "
                "with --checkpoint=last, or train into a new workdir"
            )
        step = going_on[0] if going_on else -1
        then = f"the training goes on from step {max(step, 0)}"
        self._set_aside("last", damaged, then)
        # Afterwards, so that an interruption in between is made good by doing it all again.
        if lost is not None:
            self._set_aside("best", {best[0]: lost}, f"{then} and writes it again")
        return _Choice(step, best[0] if best else -1)

    def _set_aside(self, kind: str, damaged: dict[int, str], then: str):
        for step, damage in sorted(damaged.items(), reverse=True):
            _warn(f"{damage}; {then}")
            if not self._read_only:
                move_aside(self.root / kind / str(step))
        if damaged:
            self._steps(kind)

    def _none_whole(self, kind: str, damaged: dict[int, str]) -> CheckpointError:
        folder = self.root / kind
        if not damaged:
            return CheckpointError(
                f"{folder}: found no checkpoint, expected one; train first, with "
                "`python -m sft_jax.train`"
            )
        remedy = f"remove {folder} to train again from the beginning"
        if kind == "best":
            remedy = "train again, which writes it again where it can, or give --checkpoint=last"
        return CheckpointError(
            f"{folder}: found no whole checkpoint ({'; '.join(damaged.values())}); bring the files "
            f"back, or {remedy}"
        )

    def _agreed(self, choose: Callable[[], "_Choice"]) -> "_Choice":
        """The choice of process 0, for all."""
        if jax.process_count() == 1:
            return choose()
        choice, failure = _FAILED, None
        if jax.process_index() == 0:
            try:
                choice = choose()
            except (CheckpointError, OSError) as error:
                failure = error  # the others wait to hear of it
        choice = _Choice(*map(int, multihost_utils.broadcast_one_to_all(np.array(choice))))
        if failure is not None:
            raise failure
        if choice == _FAILED:
            raise CheckpointError(f"{self.root}: process 0 cannot go on; see what it says")
        for kind in self._managers:
            self._steps(kind)
        return choice

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if not is_disk_error(error):
                raise
            whole = [path.name for path in (self.root / "last").glob("*") if path.name.isdigit()]
            newest = f"step {max(map(int, whole))}" if whole else "none"
            raise CheckpointError(
                f"{self.root}: a checkpoint could not be written ({_short(error)}); see that "
                "the disk has room and may be written to, then give the same command again (newest "
                f"whole checkpoint: {newest})"
            ) from error

    def wait(self):
        """Blocks until everything that was begun is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        with self._writing():
            for manager in self._managers.values():
                manager.wait_until_finished()

    def close(self):
        """Waits, then releases the folders.

        Raises:
            CheckpointError: something could not be written.
        """
        with self._writing():
            for manager in self._managers.values():
                manager.close()


class _Choice(NamedTuple):
    """Newest step to use, -1 to begin; newest best step there was, -1 if none."""

    step: int
    best: int = -1


_FAILED = _Choice(-2)


def _warn(text: str):
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _short(error: Exception) -> str:
    text = str(error)  # the reason comes behind the path, which may be long
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}"


def _not_now(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{folder}: could not be read ({error}), which need not be its fault; nothing was changed, "
        "give the same command again"
    )


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder}: holds a _CHECKPOINT_METADATA that cannot be read ({str(error)[:300]}); remove "
        "that file, without which the checkpoint loads, too"
    )


def _sum_unfinished(folder: Path):
    """Adds sums to the checkpoint that is written and has not got its name yet."""
    for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
        write_checksums(unfinished)


def _open(folder: Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    try:
        return _manager(folder, keep, read_only)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: could not be opened ({error}); see that the disk has room and may be "
            "written to, then give the same command again"
        ) from error
    except _UNREADABLE as error:
        raise _unreadable(folder, error) from error


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """No: the loop looks for it. Older Orbax asks JAX's service, which is switched off."""
        return False


def _manager(folder: Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    # Two folders may be written at once, and processes must not meet at the other's barrier.
    processes = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name)
    json_handler = functools.partial(ocp.JsonCheckpointHandler, multiprocessing_options=processes)
    return _Manager(
        folder,
        item_handlers={
            "state": ocp.StandardCheckpointHandler(multiprocessing_options=processes),
            "progress": json_handler(),
            "config": json_handler(),
        },
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            multiprocessing_options=processes,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=functools.partial(_sum_unfinished, folder),
                # In the background, threads would wait for folders that cannot be made, and the
                # process for those threads.
                create_directories_asynchronously=False,
            ),
        ),
    )
