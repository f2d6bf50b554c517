"""A few faults, injected for real, and what is said of those that were injected before."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import table
from tests.faults.bench import End, differences
from tests.faults.trials import KILLS, titles
from tests.faults.verdict import Verdict

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def few(tmp_path_factory, quick_flags):
    """What a few faults came to, in a process that may be forked."""
    environment = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": quick_flags,
    }
    command = [sys.executable, "-m", "tests.faults.few", str(tmp_path_factory.mktemp("few"))]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout)


def test_a_life_is_killed_in_a_save_and_the_next_in_its_restore(few):
    assert few["codes"] == [-signal.SIGKILL] * 2
    assert few["by itself"] == [True, True]
    assert few["kept"] == [[2, 4], [2, 4]]


def test_a_killed_run_with_a_flipped_bit_in_its_checkpoint_ends_as_if_undisturbed(few):
    assert few["put aside"] == ["4.damaged"]
    assert few["verdict"]["survived"] == 1, few["verdict"]["note"]


STEP_2 = {"kind": "train", "step": 2, "loss": 1.5}
STEP_4 = {"kind": "train", "step": 4, "loss": 1.25}
VALID_4 = {"kind": "valid", "step": 4, "loss": 1.75}
END = End({"last": [4, "aa"], "best": [4, "aa"]}, [STEP_2, STEP_4, VALID_4])


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (END, []),
        (End({**END.states, "best": [2, "bb"]}, END.records), ["best: [2, 'bb'] instead of"]),
        (End(END.states, END.records[:2]), ["2 records instead of 3"]),
        (End(END.states, [STEP_2, {**STEP_4, "loss": 1.3}, VALID_4]), ["{'kind': 'train', 'st"]),
    ],
)
def test_ends_that_differ_are_told_apart(got, expected):
    found = differences(got, END)
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected


def test_windows_that_a_stop_has_cut_need_not_be_equal():
    cut = [STEP_2, {**STEP_4, "step": 3, "loss": 2.0}, {**STEP_4, "loss": 0.5}, VALID_4]
    assert differences(End(END.states, cut), END, whole_windows=False) == []
    assert len(differences(End(END.states, cut), END)) > 0
    cut[0] = {**STEP_2, "loss": 1.6}
    assert len(differences(End(END.states, cut), END, whole_windows=False)) == 1
    assert differences(End(END.states, cut[1:3]), END, whole_windows=False) == [
        "no record of ('valid', 0, 4)"
    ]


def test_every_fault_has_one_outcome():
    with pytest.raises(ValueError, match="one outcome"):
        Verdict(fault="kill", injected=2, survived=1)


def test_the_table_counts_what_there_is(tmp_path):
    trials = [
        {"fault": "a", "injected": 3, "survived": 2, "refused": 1, "lost": 0},
        {"fault": "b", "injected": 1, "survived": 0, "refused": 0, "lost": 1},
        {"fault": "a", "injected": 4, "survived": 4, "refused": 0, "lost": 0},
    ]
    results = {"seed": 0, "trials": trials}
    table.write(tmp_path / "results.json", results)
    assert table.read(tmp_path / "results.json") == results
    text = table.table(results, {"a": "one", "b": "two", "c": "three"})
    assert text.splitlines()[2:] == [
        "| one | 7 | 6 | 1 | 0 |",
        "| two | 1 | 0 | 0 | 1 |",
        "| all | 8 | 6 | 1 | 1 |",
    ]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.MARK}\nold\n{table.MARK}\nafter\n")
    table.put(page, text)
    assert table.shown(page) == text
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")


def test_notes_are_the_same_on_another_machine(tmp_path):
    note = f"{tmp_path}/run: process 7 on box works in {tmp_path}/run, on boxes"
    expected = "run: process 7 on this host works in run, on boxes"
    assert table.anywhere(note, tmp_path, "box") == expected


def test_what_was_counted_is_what_the_page_shows():
    results = table.read(ROOT / "docs" / "results" / "faults.json")
    assert table.total(results["trials"], KILLS)["injected"] >= 300
    assert table.total(results["trials"], list(titles()))["lost"] == 0
    assert {trial["fault"] for trial in results["trials"]} == set(titles())
    assert table.shown(ROOT / "docs" / "faults.md") == table.table(results, titles())
