"""Checkpoints by Orbax: the newest few and the best one, each written atomically."""

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
from sft_jax.training.state import Progress, TrainState, differences
from sft_jax.types import CheckpointError

# Number of attempts at reading a checkpoint that a running training replaces meanwhile.
_MOST_REPLACED = 4
# Errors that Orbax, TensorStore and their parsers raise on damaged files; not those of devices,
# such as running out of memory.
_UNREADABLE = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError),
    *(OSError, NotImplementedError, RecursionError),
)


class Checkpoints:
    """The folders `checkpoints/last` and `checkpoints/best` of a run.

    Checkpoints are saved in the background and get their final name once they are complete.
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
            workdir: Folder of the run.
            keep: Number of newest checkpoints in `last`.
            read_only: Whether to leave the folders unchanged: to create none, to leave damaged
                checkpoints in place, and unfinished ones, which a training may be writing.
            config: Configuration to save in every checkpoint, so that it can be used by itself.

        Raises:
            CheckpointError: The folders cannot be created, or metadata of Orbax is damaged.
        """
        self.root = Path(workdir).absolute() / "checkpoints"
        self._config, self._read_only = config or {}, read_only
        self._managers = {
            kind: _open(self.root / kind, count, read_only)
            for kind, count in (("last", keep), ("best", 1))
        }

    def save(self, kind: str, state: TrainState, progress: Progress):
        """Starts to save a checkpoint in the background.

        An existing checkpoint of the same step is kept: the same run has written it, with the same
        content. Later checkpoints are deleted, since training has returned to before them.

        Raises:
            CheckpointError: This checkpoint or the previous one could not be written.
        """
        step, manager = int(jax.device_get(state.step)), self._managers[kind]
        if step in manager.all_steps():
            return
        with self._writing():
            if kind == "last":
                # Its progress refers to the best one, which must therefore be complete.
                self._managers["best"].wait_until_finished()
            for later in [other for other in manager.all_steps() if other > step]:
                manager.delete(later)  # otherwise Orbax would keep it and drop this one
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
        """Restores the newest intact checkpoint of a folder into the shardings of `abstract`.

        Damaged checkpoints are reported in a warning and, unless the folders are read-only, moved
        aside. If a running training replaces the checkpoint meanwhile, the new one is read.

        Raises:
            CheckpointError: There is none, all are damaged, or the parameters do not match
                `abstract`.
        """
        for _ in range(_MOST_REPLACED):
            newest = self.latest(kind)
            step = self._agreed(lambda: self._choose(kind)).step
            try:
                return self._read(kind, step, abstract)
            except CheckpointError:
                # With several processes, others may have read it.
                if jax.process_count() > 1 or self._steps(kind)[:1] in ([], [newest]):
                    raise
        return self._read(kind, self._choose(kind).step, abstract)

    def resume(self, abstract: TrainState) -> tuple[TrainState, Progress] | None:
        """Restores the newest intact checkpoint of `last`; None if there is none.

        If the best checkpoint is damaged, training resumes from before it and writes it again.

        Raises:
            CheckpointError: See `restore`; or the best one is damaged and no other precedes it.
        """
        chosen = self._agreed(self._choose_to_resume)
        if chosen.step < 0:
            return None
        state, progress = self._read("last", chosen.step, abstract)
        if progress.best is not None and chosen.best < 0:
            _warn(
                f"{self.root / 'best'}: found no checkpoint, expected the one of step "
                f"{progress.best_step}; the best of the remaining validations is kept instead"
            )
            progress = dataclasses.replace(progress, best=None, best_step=0)
        return state, progress

    def _read(self, kind: str, step: int, abstract: TrainState) -> tuple[TrainState, Progress]:
        folder = self.root / kind / str(step)
        try:
            if (folder / "config").is_dir():
                arguments = ocp.args.Composite(config=ocp.args.JsonRestore())
                stored = self._managers[kind].restore(step, args=arguments).config
                accepted(stored, folder / "config")
            # Orbax would find a difference only while it reads, and leave other reads unfinished.
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
                remedy = "its files are intact: use the version that wrote it"
            raise CheckpointError(
                f"{folder}: could not be read as this configuration's model "
                f"({str(error)[:300]}); {remedy}, or train into a new workdir"
            ) from error

    def _stored(self, kind: str, step: int) -> Any:
        """Shapes and dtypes of the arrays in a checkpoint."""
        try:
            return self._managers[kind].item_metadata(step)["state"]
        # The tree is too deep, or a name is not text; no device is involved here.
        except (RuntimeError, SystemError) as error:
            raise ValueError(str(error.__cause__ or error)) from error

    def _steps(self, kind: str) -> list[int]:
        """Steps in a folder, reread, the newest first."""
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
        """The newest intact step, after moving damaged ones aside."""
        damaged: dict[int, str] = {}
        # Reread each time, since a running training removes old checkpoints.
        while left := [step for step in self._steps(kind) if step not in damaged]:
            damage = self._damage(kind, left[0])
            if damage is None:
                self._set_aside(kind, damaged, f"step {left[0]} is used instead")
                return _Choice(left[0])
            damaged[left[0]] = damage
        raise self._none_intact(kind, damaged)

    def _choose_to_resume(self) -> "_Choice":
        best, last = self._steps("best"), self._steps("last")
        lost = self._damage("best", best[0]) if best else None
        damaged, too_late = dict[int, str](), list[int]()
        for step in last:
            damage = self._damage("last", step)
            if damage is not None:
                damaged[step] = damage
            elif lost is not None and step >= best[0]:
                too_late.append(step)
                damaged[step] = f"{self.root / 'last' / str(step)}: intact, but not before the best"
            else:
                break
        usable = [step for step in last if step not in damaged]
        if last and not usable:
            if lost is None or not too_late:
                raise self._none_intact("last", damaged)
            raise CheckpointError(
                f"{lost}: this best checkpoint is damaged, and no intact one in "
                f"{self.root / 'last'} precedes it; remove {best[0]} from {self.root / 'best'} to "
                "resume and keep the best of the remaining validations, evaluate step "
                f"{too_late[0]} with --checkpoint=last, or train into a new workdir"
            )
        step = usable[0] if usable else -1
        consequence = f"the training resumes from step {max(step, 0)}"
        self._set_aside("last", damaged, consequence)
        # In this order, so that an interruption in between can be repaired by starting again.
        if lost is not None:
            self._set_aside("best", {best[0]: lost}, f"{consequence} and writes it again")
        return _Choice(step, best[0] if best else -1)

    def _set_aside(self, kind: str, damaged: dict[int, str], consequence: str):
        for step, damage in sorted(damaged.items(), reverse=True):
            _warn(f"{damage}; {consequence}")
            if not self._read_only:
                move_aside(self.root / kind / str(step))
        if damaged:
            self._steps(kind)

    def _none_intact(self, kind: str, damaged: dict[int, str]) -> CheckpointError:
        folder = self.root / kind
        if not damaged:
            return CheckpointError(
                f"{folder}: found no checkpoint, expected one; train first, with "
                "`python -m sft_jax.train`"
            )
        remedy = f"remove {folder} to train again from the beginning"
        if kind == "best":
            remedy = "resume the training, which may write it again, or give --checkpoint=last"
        return CheckpointError(
            f"{folder}: found no intact checkpoint ({'; '.join(damaged.values())}); restore the "
            f"files, or {remedy}"
        )

    def _agreed(self, choose: Callable[[], "_Choice"]) -> "_Choice":
        """The choice of process 0, for all processes."""
        if jax.process_count() == 1:
            return choose()
        choice, failure = _FAILED, None
        if jax.process_index() == 0:
            try:
                choice = choose()
            except (CheckpointError, OSError) as error:
                failure = error  # raised after the others have been told
        choice = _Choice(*map(int, multihost_utils.broadcast_one_to_all(np.array(choice))))
        if failure is not None:
            raise failure
        if choice == _FAILED:
            raise CheckpointError(f"{self.root}: process 0 failed; see its error message")
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
            saved = [path.name for path in (self.root / "last").glob("*") if path.name.isdigit()]
            newest = f"step {max(map(int, saved))}" if saved else "none"
            raise CheckpointError(
                f"{self.root}: a checkpoint could not be written ({_short(error)}); see that "
                "the disk has room and is writable, then give the same command again (newest "
                f"complete checkpoint: {newest})"
            ) from error

    def wait(self):
        """Blocks until all checkpoints are on disk.

        Raises:
            CheckpointError: One could not be written.
        """
        with self._writing():
            for manager in self._managers.values():
                manager.wait_until_finished()

    def close(self):
        """Waits until all checkpoints are on disk, and closes the folders.

        Raises:
            CheckpointError: One could not be written.
        """
        with self._writing():
            for manager in self._managers.values():
                manager.close()


class _Choice(NamedTuple):
    """Newest step to use, and newest best step; -1 if there is none."""

    step: int
    best: int = -1


_FAILED = _Choice(-2)


def _warn(text: str):
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _short(error: Exception) -> str:
    text = str(error)  # the reason follows the path, which may be long
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}"


def _not_now(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{folder}: could not be read ({error}), perhaps only for a moment; nothing was changed, "
        "give the same command again"
    )


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder}: holds a _CHECKPOINT_METADATA that cannot be read ({str(error)[:300]}); remove "
        "that file, which is not needed to load the checkpoint"
    )


def _sum_unfinished(folder: Path):
    """Adds checksums to the checkpoint that is written but does not have its final name yet."""
    for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
        write_checksums(unfinished)


def _open(folder: Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    try:
        return _manager(folder, keep, read_only)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: could not be opened ({error}); see that the disk has room and is "
            "writable, then give the same command again"
        ) from error
    except _UNREADABLE as error:
        raise _unreadable(folder, error) from error


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """False: the loop handles signals, and older versions of Orbax ask a disabled service."""
        return False


def _manager(folder: Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    # Both folders may be written at the same time, and their barriers must not be mixed up.
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
                # In the background, a folder that cannot be created would block the process.
                create_directories_asynchronously=False,
            ),
        ),
    )
