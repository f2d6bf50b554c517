"""`python -m sft_jax.check_vectors DIR`, on folders that are made fast to compare."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sft_jax import check_vectors
from sft_jax.interop.vectors.recorded import read_arrays
from sft_jax.types import DataError

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "reference_vectors"
TOLERANCE = "tolerance 2e-05 (1e-06 for losses and scores of tasks)"
LINE = re.compile(r"(ok|FAIL) +(\S+\.npz) +(\S+) +(NaN|\d\.\de[+-]\d\d)")


def copy(folder, *names):
    for name in names:
        shutil.copy(VECTORS / f"{name}.npz", folder)
    return folder


def rewrite(path, **changes):
    np.savez(path, **{**read_arrays(path), **changes})


def test_a_line_for_every_file_and_quantity(tmp_path, capsys):
    folder = copy(tmp_path, "metrics", "unimodal_text")
    assert check_vectors.main(str(folder)) is None
    *lines, summary = capsys.readouterr().out.splitlines()
    found = [LINE.fullmatch(line).groups() for line in lines]
    expected = {
        (entry, name)
        for entry, text in read_arrays(VECTORS / "metrics.npz").items()
        if "_expected" in entry
        for name in json.loads(str(text))
    }
    names = [f"{entry}/{name}" for entry, name in expected]
    assert sorted((file, quantity) for _, file, quantity, _ in found) == sorted(
        [("unimodal_text.npz", "logits"), *(("metrics.npz", name) for name in names)]
    )
    for verdict, _, _, largest in found:
        assert verdict == "ok"
        assert float(largest) <= 2e-5
    assert summary == f"25 quantities compared, 0 failed; {TOLERANCE}"


def test_what_disagrees_and_what_cannot_be_compared_end_with_status_1(tmp_path, capsys):
    folder = copy(tmp_path, "metrics", "unimodal_text")
    expected = json.loads(str(read_arrays(folder / "metrics.npz")["vgg_expected"]))
    wrong = json.dumps({**expected, "mAP": expected["mAP"] + 0.2})
    rewrite(folder / "metrics.npz", vgg_expected=np.array(wrong))
    logits = read_arrays(folder / "unimodal_text.npz")["logits"]
    logits[0, 0] = np.nan
    rewrite(folder / "unimodal_text.npz", logits=logits)
    (folder / "broken.npz").write_text("no archive")
    with pytest.raises(SystemExit) as caught:
        check_vectors.main(str(folder))
    assert caught.value.code == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if not line.startswith("ok ")]
    assert len(failed) == 3
    assert re.match(r"FAIL +broken.npz .*found no readable .npz", failed[0])
    assert LINE.fullmatch(failed[1]).groups()[1:] == ("metrics.npz", "vgg_expected/mAP", "2.0e-01")
    assert LINE.fullmatch(failed[2]).groups()[1:] == ("unimodal_text.npz", "logits", "NaN")
    assert summary == f"25 quantities compared, 3 failed; {TOLERANCE}"


def test_a_folder_without_recordings_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"found no .npz file, expected a folder of recordings"):
        check_vectors.main(str(tmp_path))
    with pytest.raises(DataError, match=r"absent: found no .npz file"):
        check_vectors.main(str(tmp_path / "absent"))


def test_home_is_expanded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(copy(tmp_path, "metrics")))
    check_vectors.main("~")
    assert "24 quantities compared, 0 failed" in capsys.readouterr().out


def start(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "sft_jax.check_vectors", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_the_command_and_its_exit_status(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        folder.mkdir()
        copy(folder, "metrics")
    (bad / "broken.npz").write_text("no archive")
    started = [start(good), start(bad), start(tmp_path / "absent"), start(), start(good, bad)]
    outcomes = [(*process.communicate(timeout=200), process.returncode) for process in started]
    codes = [code for *_, code in outcomes]
    assert codes == [0, 1, 1, 1, 1]
    assert "24 quantities compared, 0 failed" in outcomes[0][0]
    assert outcomes[0][1] == ""
    assert "24 quantities compared, 1 failed" in outcomes[1][0]
    assert re.match(r"DataError: .*absent: found no .npz file", outcomes[2][1])
    assert "given [], expected one DIR" in "".join(outcomes[3][:2])
    assert "expected one DIR" in "".join(outcomes[4][:2])
    assert not any("Traceback" in text for out, error, _ in outcomes for text in (out, error))
