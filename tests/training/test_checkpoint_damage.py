import dataclasses
import errno
import json
import os
import random
import shutil
import time

import jax
import numpy as np
import optax
import pytest
from harm import flip, truncate

from sft_jax.files import checksums
from sft_jax.files.checksums import find_damage, write_checksums
from sft_jax.training import checkpoint
from sft_jax.training.checkpoint import Checkpoints
from sft_jax.training.state import Progress
from sft_jax.types import CheckpointError

PROGRESS = Progress(data={"position": 7})


@pytest.fixture
def state(tiny):
    def make(step):
        return tiny.linear_state(optax.sgd(1e-3), seed=step).replace(step=jax.numpy.int32(step))

    return make


@pytest.fixture
def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
    )


@pytest.fixture
def saved(state, tmp_path):
    """Makes `checkpoints` with these steps; their progress says the best is the newest of it."""

    def save(last=(), best=()):
        found = dataclasses.replace(PROGRESS, best=0.5, best_step=max(best)) if best else PROGRESS
        checkpoints = Checkpoints(tmp_path)
        for kind, steps in (("best", best), ("last", last)):
            for step in steps:
                checkpoints.save(kind, state(step), found)
        checkpoints.close()
        return tmp_path / "checkpoints"

    return save


def restore(workdir, abstract, kind="last", read_only=False):
    checkpoints = Checkpoints(workdir, read_only=read_only)
    try:
        return checkpoints.restore(kind, abstract)
    finally:
        checkpoints.close()


def resume(workdir, abstract):
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.resume(abstract)
    finally:
        checkpoints.close()


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_damage_of_any_file_is_found_and_named(saved):
    whole = saved(last=[5]) / "last" / "5"
    assert find_damage(whole) is None
    listed = json.loads((whole / "checksums.json").read_text())["files"]
    stored = {p.relative_to(whole).as_posix() for p in whole.rglob("*") if p.is_file()}
    # The last of them by newer versions of Orbax alone.
    later = {"checksums.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert later - {"commit_success.txt"} <= stored - set(listed) <= later
    assert {"state/_METADATA", "progress/metadata", "config/metadata"} <= set(listed)
    for name in listed:
        content = (whole / name).read_bytes()
        for harm in (flip, truncate, os.remove):
            harm(whole / name)
            assert find_damage(whole).startswith(f"{whole / name}: ")
            (whole / name).write_bytes(content)
    assert find_damage(whole) is None


def test_files_that_nobody_wrote_do_no_harm(saved):
    whole = saved(last=[5]) / "last" / "5"
    (whole / ".DS_Store").write_text("x")
    assert find_damage(whole) is None


@pytest.mark.parametrize(
    "content", ["", "[]", '{"files": 1}', '{"files": {"a": 1}}', "[" * 10**5, "\ud800", "1" * 5000]
)
def test_sums_that_are_none_are_damage(tmp_path, content):
    (tmp_path / "a").write_text("a")
    (tmp_path / "checksums.json").write_bytes(content.encode(errors="surrogatepass"))
    assert find_damage(tmp_path).startswith(f"{tmp_path / 'checksums.json'}: holds no checksums")


def test_files_of_too_many_bytes_are_measured_alone(tmp_path):
    (tmp_path / "a").write_text("abc")
    (tmp_path / "b").write_text("de")
    write_checksums(tmp_path, max_hashed_bytes=5)
    summed = json.loads((tmp_path / "checksums.json").read_text())["files"]
    assert {name: sorted(entry) for name, entry in summed.items()} == {
        "a": ["bytes", "sha256"],
        "b": ["bytes", "sha256"],
    }
    write_checksums(tmp_path, max_hashed_bytes=4)
    sizes = json.loads((tmp_path / "checksums.json").read_text())["files"]
    assert sizes == {"a": {"bytes": 3}, "b": {"bytes": 2}}
    flip(tmp_path / "a")
    assert find_damage(tmp_path) is None
    truncate(tmp_path / "a")
    assert find_damage(tmp_path) == f"{tmp_path / 'a'}: found 2 bytes, expected 3"


def test_sums_lead_to_no_file_outside(tmp_path):
    folder = tmp_path / "5"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    for name in ("../secret", "link", str(tmp_path / "secret")):
        table = {"files": {name: {"bytes": 1, "sha256": "0"}}}
        (folder / "checksums.json").write_text(json.dumps(table))
        assert "not found, expected 1 bytes" in find_damage(folder)


def test_sums_are_replaced_whole(tmp_path):
    (tmp_path / "a").write_text("a")
    write_checksums(tmp_path)
    write_checksums(tmp_path)
    assert names(tmp_path) == ["a", "checksums.json"]
    assert find_damage(tmp_path) is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE, errno.EACCES])
def test_what_is_no_fault_of_a_checkpoint_does_not_cost_it(saved, abstract, monkeypatch, number):
    folder = saved(last=[5, 10])

    def refuse(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checksums, "file_sha256", refuse)
    with pytest.raises(CheckpointError, match=r"last/10: could not be read .*command again"):
        resume(folder.parent, abstract)
    monkeypatch.undo()
    assert names(folder / "last") == ["10", "5"]
    assert resume(folder.parent, abstract)[0].step == 10


def test_a_whole_checkpoint_that_cannot_be_read_now_is_not_to_be_removed(
    saved, abstract, monkeypatch
):
    folder = saved(last=[5, 10])

    def refuse(*_):
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    monkeypatch.setattr(checkpoint, "differences", refuse)
    with pytest.raises(CheckpointError, match=r"last/10: could not be read .*command again"):
        resume(folder.parent, abstract)
    monkeypatch.setattr(checkpoint, "differences", lambda *_: ["x: float32[3] here"])
    with pytest.raises(CheckpointError, match=r"last/10: .*files are intact: .*version") as error:
        resume(folder.parent, abstract)
    assert "remove" not in str(error.value)
    monkeypatch.undo()
    assert resume(folder.parent, abstract)[0].step == 10


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("best",), "0.5"),
        (("best",), float("inf")),
        (("best_step",), -1),
        (("plateau", "stale"), [1]),
        (("plateau", "scale"), float("nan")),
        (("data",), 3),
    ],
)
def test_progress_that_is_none_is_named(place, value):
    given = json.loads(json.dumps(PROGRESS.to_json()))
    assert Progress.from_json(given) == PROGRESS
    within = given[place[0]] if len(place) > 1 else given
    within[place[-1]] = value
    with pytest.raises(ValueError, match=rf"progress\.{'.'.join(place)}: found"):
        Progress.from_json(given)


def test_what_was_gone_back_behind_gives_way(saved, state, abstract, tmp_path):
    """Killed between best and last: elsewhere, the best of before may not come again."""
    saved(last=[10], best=[20])
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.resume(abstract)[0].step == 10
    found = dataclasses.replace(PROGRESS, best=0.5, best_step=15)
    for kind in ("best", "last"):
        checkpoints.save(kind, state(15), found)
    checkpoints.close()
    restored, _ = restore(tmp_path, abstract, "best")
    jax.tree.map(np.testing.assert_array_equal, restored, state(15))
    assert names(tmp_path / "checkpoints" / "best") == ["15"]


def test_a_damaged_newest_is_moved_aside_and_the_one_before_is_used(
    saved, state, abstract, tmp_path, capsys
):
    last = saved(last=[5, 6]) / "last"
    for expected in (["5", "6.damaged"], ["5", "6.damaged", "6.damaged-2"]):
        flip(last / "6" / "progress" / "metadata")
        assert_same(restore(tmp_path, abstract)[0], state(5))
        warning = capsys.readouterr().err
        assert "last/6/progress/metadata: found other bytes" in warning
        assert "step 5 is used instead" in warning
        assert names(last) == expected
        saved(last=[6])


def test_with_none_whole_nothing_is_moved(saved, abstract, tmp_path):
    last = saved(last=[5, 6]) / "last"
    flip(last / "5" / "state" / "manifest.ocdbt")
    os.remove(last / "6" / "config" / "metadata")
    for call in (restore, resume, restore):
        with pytest.raises(
            CheckpointError,
            match=r"no intact .*6/config/metadata: not found.*5/state/manifest.*remove .*beginning",
        ):
            call(tmp_path, abstract)
    assert names(last) == ["5", "6"]


def test_reading_moves_nothing(saved, state, abstract, tmp_path, capsys):
    folder = saved(last=[5, 6], best=[4])
    for file in ("last/6/state/_METADATA", "best/4/state/_METADATA"):
        truncate(folder / file)
    assert_same(restore(tmp_path, abstract, read_only=True)[0], state(5))
    assert "last/6/state/_METADATA: found" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"best/4/state/_METADATA.*--checkpoint=last"):
        restore(tmp_path, abstract, "best", read_only=True)
    assert (names(folder / "last"), names(folder / "best")) == (["5", "6"], ["4"])


def test_a_damaged_best_is_written_again_where_that_can_be(
    saved, state, abstract, tmp_path, capsys
):
    folder = saved(last=[4, 6], best=[6])
    flip(folder / "best" / "6" / "state" / "_METADATA")
    resumed, progress = resume(tmp_path, abstract)
    assert_same(resumed, state(4))
    assert progress.best_step == 6
    # Or the next start, with no best, would take it for the newest.
    assert (names(folder / "last"), names(folder / "best")) == (["4", "6.damaged"], ["6.damaged"])
    assert "resumes from step 4 and writes it again" in capsys.readouterr().err


def test_a_damaged_best_ahead_of_the_training_is_written_again(saved, state, abstract, tmp_path):
    folder = saved(last=[4], best=[6])
    os.remove(folder / "best" / "6" / "state" / "_METADATA")
    assert_same(resume(tmp_path, abstract)[0], state(4))
    assert (names(folder / "last"), names(folder / "best")) == (["4"], ["6.damaged"])


def test_a_damaged_best_is_an_error_where_it_cannot_be_written_again(
    saved, state, abstract, tmp_path, capsys
):
    folder = saved(last=[7, 8], best=[6])
    flip(folder / "best" / "6" / "state" / "_METADATA")
    for _ in range(2):
        with pytest.raises(
            CheckpointError,
            match=r"best/6/state/_METADATA.*damaged.*remove 6 from .*best to resume",
        ):
            resume(tmp_path, abstract)
    with pytest.raises(CheckpointError, match=r"evaluate step 8 with --checkpoint=last"):
        resume(tmp_path, abstract)
    kept = shutil.copytree(folder / "last", tmp_path / "kept")
    for step in (7, 8):
        flip(folder / "last" / str(step) / "state" / "_METADATA")
    with pytest.raises(CheckpointError, match=r"no intact checkpoint .*remove .*/last to train"):
        resume(tmp_path, abstract)
    shutil.copytree(kept, folder / "last", dirs_exist_ok=True)
    shutil.rmtree(folder / "best" / "6")
    resumed, progress = resume(tmp_path, abstract)
    assert_same(resumed, state(8))
    assert progress == PROGRESS
    assert (
        "expected the one of step 6; the best of the remaining validations"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("harm", ["deep", "no text"])
def test_a_tree_that_cannot_be_is_named(saved, abstract, tmp_path, harm):
    """By a stranger: without sums, what it says is believed until it fails."""
    folder = saved(last=[5]) / "last" / "5"
    os.remove(folder / "checksums.json")
    path = folder / "state" / "_METADATA"
    content = json.loads(path.read_text())
    keys = next(iter(content["tree_metadata"].values()))["key_metadata"]
    keys.extend([{"key": "0", "key_type": 1}] * 3000 if harm == "deep" else [])
    keys[-1]["key"] = "0" if harm == "deep" else "\ud800"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"last/5: could not be read as .* remove this"):
        restore(tmp_path, abstract)


def test_nothing_to_resume(abstract, tmp_path):
    assert resume(tmp_path, abstract) is None


def test_a_best_before_the_first_checkpoint_is_written_again(saved, abstract, tmp_path):
    folder = saved(best=[2])
    flip(folder / "best" / "2" / "state" / "_METADATA")
    assert resume(tmp_path, abstract) is None
    assert names(folder / "best") == ["2.damaged"]


def test_the_best_is_complete_before_the_last_that_tells_of_it(state, tmp_path, monkeypatch):
    written = []

    def slow(folder):
        kind = folder.parent.name
        time.sleep(0.2 * (kind == "best"))
        write_checksums(folder)
        written.append(kind)

    monkeypatch.setattr(checkpoint, "write_checksums", slow)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("best", state(3), PROGRESS)
    checkpoints.save("last", state(3), PROGRESS)
    checkpoints.close()
    assert written == ["best", "last"]


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (FileNotFoundError("gone"), True),
        (ValueError("RESOURCE_EXHAUSTED: write: [OS error 28: No space left on device]"), True),
        (ConnectionResetError("peer"), False),
        (ValueError("UNKNOWN: Gloo AllReduce failed: Connection reset by peer"), False),
    ],
)
def test_a_disk_is_blamed_for_its_own_faults_alone(state, tmp_path, monkeypatch, error, named):
    def fail(folder):
        raise error

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoint, "write_checksums", fail)
    checkpoints.save("last", state(4), PROGRESS)
    with pytest.raises(CheckpointError if named else type(error), match=str(error.args[-1])[:9]):
        checkpoints.wait()


def test_a_save_that_fails_surfaces_and_leaves_the_one_before(
    state, abstract, tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("last", state(3), PROGRESS)
    checkpoints.wait()

    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_checksums", full)
    checkpoints.save("last", state(4), PROGRESS)
    expected = r"could not be written .*No space left on device.*checkpoint: step 3"
    with pytest.raises(CheckpointError, match=expected):
        checkpoints.save("last", state(5), PROGRESS)
    monkeypatch.undo()
    assert_same(restore(tmp_path, abstract)[0], state(3))


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(CheckpointError, match=r"checkpoints.last: could not be opened"):
        Checkpoints(tmp_path)


def test_mangled_notes_of_orbax_are_named(saved, abstract, tmp_path):
    step = saved(last=[5]) / "last" / "5"
    for content in ("[]", "[" * 10**5):
        (step / "_CHECKPOINT_METADATA").write_text(content)
        with pytest.raises(CheckpointError, match=r"_CHECKPOINT_METADATA.*remove that file"):
            restore(tmp_path, abstract)
    (step / "_CHECKPOINT_METADATA").unlink()
    assert restore(tmp_path, abstract)[1] == PROGRESS


def test_mangled_files_without_sums_load_the_same_or_are_refused(saved, state, abstract, tmp_path):
    step = saved(last=[5]) / "last" / "5"
    (step / "checksums.json").unlink()
    assert_same(restore(tmp_path, abstract)[0], state(5))
    rng = random.Random(0)
    whole = {path: path.read_bytes() for path in sorted(step.rglob("*")) if path.is_file()}
    refused = 0
    for path in rng.choices(list(whole), k=20) + [step / "progress" / "metadata"] * 3:
        content = bytearray(whole[path])
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(rng.choice([content, content[: len(content) // 2], b"[]", b'{"a": 1}']))
        try:
            assert_same(restore(tmp_path, abstract)[0], state(5))
        except CheckpointError:
            refused += 1
        path.write_bytes(whole[path])
    assert refused > 3
