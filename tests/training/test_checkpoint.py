import json
import math
import shutil

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sft_jax.config.run import TrainConfig
from sft_jax.training import sharding
from sft_jax.training.checkpoint import Checkpoints
from sft_jax.training.optimizer import Plateau
from sft_jax.training.state import Progress
from sft_jax.types import CheckpointError

PROGRESS = Progress(
    data={"position": 7, "nested": {"seed": 1}},
    plateau=Plateau(0.5, 1.25, 3),
    best=0.1,
    best_step=2,
)


@pytest.fixture
def open_checkpoints(tmp_path):
    opened = []

    def open_(workdir=tmp_path, **options):
        opened.append(Checkpoints(workdir, **options))
        return opened[-1]

    yield open_
    for checkpoints in opened:
        checkpoints.close()


@pytest.fixture
def at(tiny, devices):
    """A state at a step, over 4 devices, of numbers that no other step has."""

    def make(step, fsdp=2, count=4, adam=True):
        config = TrainConfig(batch_size=8, fsdp_parallel=fsdp)
        mesh = sharding.make_mesh(config, devices[:count])
        first = tiny.linear_state(optax.adam(1e-3) if adam else optax.sgd(1e-3), seed=step)
        return tiny.put_state(first.replace(step=np.int32(step)), mesh)

    return make


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(got, expected):
    def check(a, b):
        assert (a.dtype, a.sharding) == (b.dtype, b.sharding)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(check, got, expected)


def steps(folder):
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def test_round_trip_bit_for_bit(open_checkpoints, at):
    saved = at(5)
    first = open_checkpoints()
    first.save("last", saved, PROGRESS)
    first.wait()
    state, progress = open_checkpoints().restore("last", abstract(saved))
    assert_same(state, saved)
    assert progress == PROGRESS


@pytest.mark.parametrize(("fsdp", "count"), [(1, 1), (1, 8), (4, 4)])
def test_a_checkpoint_moves_to_another_mesh(open_checkpoints, at, fsdp, count):
    checkpoints = open_checkpoints()
    checkpoints.save("last", at(5), PROGRESS)
    checkpoints.wait()
    expected = at(5, fsdp, count)
    assert_same(checkpoints.restore("last", abstract(expected))[0], expected)


def test_progress_survives_json_with_its_infinity():
    for progress in (PROGRESS, Progress(data={})):
        assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress
    assert Progress(data={}).plateau.best == math.inf


def test_the_newest_few_and_one_best_are_kept(open_checkpoints, at, tmp_path):
    checkpoints = open_checkpoints(keep=2)
    for step in range(1, 6):
        checkpoints.save("last", at(step), PROGRESS)
        if step in (2, 3):
            checkpoints.save("best", at(step), PROGRESS)
    checkpoints.wait()
    assert (checkpoints.latest("last"), checkpoints.latest("best")) == (5, 3)
    checkpoints.close()
    assert steps(tmp_path / "checkpoints" / "last") == [4, 5]
    assert steps(tmp_path / "checkpoints" / "best") == [3]


def test_a_step_that_is_there_stays(open_checkpoints, at):
    checkpoints, saved = open_checkpoints(), at(5)
    checkpoints.save("best", saved, PROGRESS)
    checkpoints.wait()
    other = at(6).replace(step=saved.step)
    checkpoints.save("best", other, PROGRESS)
    checkpoints.wait()
    assert_same(checkpoints.restore("best", abstract(saved))[0], saved)


def test_an_older_best_can_follow_on_a_newer_folder(open_checkpoints, at):
    """A run killed between its best and its last: the best is ahead of the resumed step."""
    checkpoints = open_checkpoints()
    checkpoints.save("best", at(8), PROGRESS)
    checkpoints.save("last", at(4), PROGRESS)
    checkpoints.wait()
    checkpoints.save("best", at(8), PROGRESS)
    checkpoints.save("best", at(12), PROGRESS)
    checkpoints.wait()
    assert checkpoints.latest("best") == 12


def test_what_a_kill_leaves_behind_is_ignored_and_swept_away(open_checkpoints, at, tmp_path):
    first = open_checkpoints()
    first.save("last", at(5), PROGRESS)
    first.close()
    last = tmp_path / "checkpoints" / "last"
    partial = last / "9.orbax-checkpoint-tmp"
    shutil.copytree(last / "5", partial)
    (partial / "state" / "_METADATA").unlink()
    again = open_checkpoints()
    assert again.latest("last") == 5
    assert_same(again.restore("last", abstract(at(5)))[0], at(5))
    assert not partial.exists()


def test_a_newest_without_sums_that_is_damaged_can_be_removed(open_checkpoints, at, tmp_path):
    first = open_checkpoints()
    for step in (5, 6):
        first.save("last", at(step), PROGRESS)
    first.close()
    newest = tmp_path / "checkpoints" / "last" / "6"
    (newest / "state" / "_METADATA").unlink()
    (newest / "checksums.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"(?s)last/6: could not be read.*remove this checkpoint"
    ):
        open_checkpoints().restore("last", abstract(at(5)))
    shutil.rmtree(newest)
    assert_same(open_checkpoints().restore("last", abstract(at(5)))[0], at(5))


def test_no_checkpoint_says_what_to_do(open_checkpoints, at):
    checkpoints = open_checkpoints()
    assert checkpoints.latest("best") is None
    with pytest.raises(
        CheckpointError, match=r"checkpoints/best: found no checkpoint.*train first"
    ):
        checkpoints.restore("best", abstract(at(1)))


def test_another_model_is_refused_by_name(open_checkpoints, at):
    checkpoints, saved = open_checkpoints(), at(5)
    checkpoints.save("last", saved, PROGRESS)
    checkpoints.wait()
    given = abstract(saved)
    wider = jax.ShapeDtypeStruct((9, 3), np.float32, sharding=saved.params["bias"].sharding)
    refused = {
        r"params/kernel: found float32\[7, 3\], expected float32\[9, 3\]": given.replace(
            params={**given.params, "kernel": wider}
        ),
        r"params/bias: found float32\[3\], expected nothing; .*params/weight: found nothing": (
            given.replace(params={"weight": given.params["kernel"]})
        ),
        r"opt_state/0/.*expected nothing": abstract(at(5, adam=False)),
    }
    for message, other in refused.items():
        with pytest.raises(CheckpointError, match=rf"(?s)last/5: could not be read as.*{message}"):
            checkpoints.restore("last", other)


def test_reading_leaves_a_running_training_alone(open_checkpoints, at, tmp_path):
    first = open_checkpoints()
    first.save("last", at(5), PROGRESS)
    first.wait()
    in_flight = tmp_path / "checkpoints" / "last" / "9.orbax-checkpoint-tmp"
    in_flight.mkdir()
    reader = open_checkpoints(read_only=True)
    assert_same(reader.restore("last", abstract(at(5)))[0], at(5))
    assert in_flight.exists()


@pytest.fixture
def read_beside_training(open_checkpoints, at, monkeypatch):
    """Opens a reader of a best checkpoint, step 5; what it looks at goes through `meanwhile`.

    That is called with the step, the look itself, and what saves another step in its place.
    """

    def open_(meanwhile):
        writer = open_checkpoints()

        def save(step):
            writer.save("best", at(step), PROGRESS)
            writer.wait()

        save(5)
        reader = open_checkpoints(read_only=True)
        untouched = ocp.CheckpointManager.item_metadata

        def look(manager, step):
            return meanwhile(step, lambda: untouched(manager, step), save)

        monkeypatch.setattr(ocp.CheckpointManager, "item_metadata", look)
        return reader

    return open_


def test_what_is_replaced_while_it_is_read_gives_way(read_beside_training, at):
    reads = []

    def meanwhile(step, look, save):
        reads.append(step)
        if len(reads) == 1:
            save(6)
        return look()

    reader = read_beside_training(meanwhile)
    assert_same(reader.restore("best", abstract(at(5)))[0], at(6))
    assert reads == [5, 6]


def test_a_model_of_another_kind_is_told_while_training_goes_on(read_beside_training, at):
    """However fast new ones come, all of them are of the other model."""
    reads = []

    def meanwhile(step, look, save):
        reads.append(step)
        found = look()
        save(step + 1)
        return found

    with pytest.raises(CheckpointError, match=r"could not be read as"):
        read_beside_training(meanwhile).restore("best", abstract(at(5, adam=False)))
    assert reads == list(range(5, 10))


def test_reading_creates_nothing(open_checkpoints, tmp_path):
    reader = open_checkpoints(tmp_path / "none", read_only=True)
    assert reader.latest("last") is None
    assert not (tmp_path / "none").exists()
