"""Checkpoints: the newest few and the best one, each written whole or not at all (Orbax)."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from sft_jax.training.optimizer import Plateau
from sft_jax.training.state import TrainState
from sft_jax.types import CheckpointError


@dataclasses.dataclass(frozen=True)
class Progress:
    """What the loop knows beside the device state; saved with it as JSON.

    Attributes:
        data: position of the training data's iterator.
        plateau: state of the plateau rule.
        best: best value of the deciding metric so far, or None.
        best_step: the step it was reached at.
    """

    data: dict[str, Any]
    plateau: Plateau = dataclasses.field(default_factory=Plateau)
    best: float | None = None
    best_step: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Progress":
        """The inverse of `to_json`."""
        return cls(**{**given, "plateau": Plateau(**given["plateau"])})


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
            read_only: neither create the folders nor sweep away what an interrupted save left,
                since that may be the save of a training that still runs.
            config: saved inside every checkpoint, so that one taken out of its run says what it is.
        """
        self.root = Path(workdir).absolute() / "checkpoints"
        self._config = config or {}
        self._managers = {
            kind: _open(self.root / kind, count, read_only)
            for kind, count in (("last", keep), ("best", 1))
        }

    def save(self, kind: str, state: TrainState, progress: Progress):
        """Starts to save in the background.

        A step that is there already was written by the same run before it was interrupted, bit for
        bit the same, and stays.
        """
        step, manager = int(jax.device_get(state.step)), self._managers[kind]
        if step in manager.all_steps():
            return
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
        """The newest checkpoint of a folder, put where `abstract` says.

        Raises:
            CheckpointError: there is none, or its parameters are not those of `abstract`.
        """
        step = self.latest(kind)
        if step is None:
            raise CheckpointError(
                f"{self.root / kind}: found no checkpoint, expected one; train first, with "
                "`python -m sft_jax.train`"
            )
        try:
            # Orbax finds a difference only while it reads, and then leaves reads in flight behind.
            stored = self._managers[kind].item_metadata(step)["state"]
            different = _differences(stored, abstract)
            if different:
                raise ValueError("; ".join(different))
            restored = self._managers[kind].restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise CheckpointError(
                f"{self.root / kind / str(step)}: could not be read as this configuration's "
                f"model ({str(error)[:300]}); remove this checkpoint to fall back on the one "
                "before it, or train into a new workdir"
            ) from error
        return restored.state, Progress.from_json(restored.progress)

    def wait(self):
        """Blocks until everything that was begun is on disk."""
        for manager in self._managers.values():
            manager.wait_until_finished()

    def close(self):
        """Waits, then releases the folders."""
        for manager in self._managers.values():
            manager.close()


def _open(folder: Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    # Two folders may be written at once, and processes must not meet at the other's barrier.
    processes = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name)
    json_handler = functools.partial(ocp.JsonCheckpointHandler, multiprocessing_options=processes)
    return ocp.CheckpointManager(
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
        ),
    )


def _differences(stored: Any, expected: Any) -> list[str]:
    """What is not in both of two trees, or not of one shape and dtype; the first few."""

    def describe(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
            for path, x in leaves
        }

    found, wanted = describe(stored), describe(expected)
    different = [
        f"{name}: found {found.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    # Moments differ wherever parameters do.
    return sorted(different, key=lambda line: not line.startswith("params"))[:3]
