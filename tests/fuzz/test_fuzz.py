"""The harness finds planted defects, its inputs depend on the seed alone, and readers hold."""

import json
import math
import subprocess
import sys

import pytest
from doc_pages import ROOT

from tests.fuzz import report
from tests.fuzz.harness import FINDINGS, OUTCOMES
from tests.fuzz.mutate import write_input
from tests.fuzz.readers import READERS

INPUTS = 15
PLANTED = {
    "sound": None,
    "evaluates": "code_run",
    "unpickles": "code_run",
    "imports": "code_run",
    "writes": "code_run",
    "loops": "hangs",
    "allocates": "over_memory",
    "asks_for_much": "over_memory",
    "looks_up": "crashes",
    "dies": "crashes",
}


def run(folder, *flags):
    """Fuzzes in a process of its own, which has started no threads; the rows, and its code."""
    path = folder / "fuzz.json"
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        f"--json={path}",
        "--findings",
        str(folder / "f"),
    ]
    ended = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert path.is_file(), ended.stderr
    return json.loads(path.read_text())["readers"], ended


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    flags = ("--module=tests.fuzz.planted", "--inputs=8", "--hang=0.3", "--memory=64")
    return *run(folder, *flags), folder / "f"


@pytest.mark.parametrize("name", PLANTED)
def test_planted_defects_are_found(planted, name):
    rows, ended, findings = planted
    assert set(rows) == set(PLANTED)
    assert ended.returncode == 1
    row = rows[name]
    assert row["inputs"] == sum(row[outcome] for outcome in OUTCOMES) == 8
    found = {outcome for outcome in FINDINGS if row[outcome]}
    assert found == ({PLANTED[name]} if PLANTED[name] else set())
    # The valid file is the first input.
    assert row["read"] >= 1
    kept = list((findings / name).rglob("what.txt"))
    assert bool(kept) == bool(found)
    for what in kept:
        number = int(what.parent.name.partition("-")[2])
        assert f"{name} seed 0 input {number}: {PLANTED[name]}" in what.read_text()
        assert (what.parent / "input" / "numbers.txt").is_file()


def test_no_reader_has_a_finding(tmp_path):
    rows, ended = run(tmp_path, f"--inputs={INPUTS}", "--hang=60")
    found = [str(path.parent) for path in (tmp_path / "f").rglob("what.txt")]
    assert found == [], ended.stdout
    assert ended.returncode == 0
    assert list(rows) == [reader.name for reader in READERS]
    for reader in READERS:
        row = rows[reader.name]
        assert row["inputs"] == row["read"] + row["named"] == math.ceil(INPUTS * reader.share)
        assert row["read"] >= 1
    # Inputs are bad enough for something to be refused.
    assert all(row["named"] for row in rows.values())


def seeds(folder):
    folder.mkdir()
    (folder / "files" / "deep").mkdir(parents=True)
    contents = {
        "a.csv": b"1,2\n3,4\n",
        "b.json": b'{"a": [1, {"b": 2.5}]}',
        "files/c.txt": b"x:y\n",
        "files/deep/d.bin": bytes(range(256)),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return [folder / "a.csv", folder / "b.json", folder / "files"]


def tree(path):
    """Everything that is there: the files' bytes, and where links lead."""
    found = {}
    for entry in sorted((path, *path.rglob("*"))):
        key = entry.relative_to(path.parent).as_posix()
        if entry.is_symlink():
            found[key] = ("link", str(entry.readlink()))
        else:
            found[key] = entry.read_bytes() if entry.is_file() else None
    return found


def inputs(given, folder, seed, reader, numbers):
    found = []
    for number in numbers:
        into = folder / f"{seed}-{reader}-{number}"
        into.mkdir(parents=True)
        found.append(tree(write_input(seed, reader, number, given, into)))
    return found


def test_inputs_depend_on_seed_reader_and_number_alone(tmp_path):
    given = seeds(tmp_path / "seeds")
    first = inputs(given, tmp_path / "1", 0, "r", range(60))
    assert first[:3] == [tree(path) for path in given]
    # In another order, after others.
    inputs(given, tmp_path / "2", 5, "r", range(20))
    assert inputs(given, tmp_path / "3", 0, "r", reversed(range(60))) == first[::-1]
    assert inputs(given, tmp_path / "4", 1, "r", range(60))[3:] != first[3:]
    assert inputs(given, tmp_path / "5", 0, "s", range(60))[3:] != first[3:]
    # Nearly all of them differ from the files they were made of.
    assert sum(one in first[:3] for one in first[3:]) < 6
    assert [tree(path) for path in given] == first[:3]


def test_a_row_replaces_its_last_one_and_the_page_follows(tmp_path):
    path, page = tmp_path / "fuzz.json", tmp_path / "fuzz.md"
    row = {"inputs": 1200, "read": 200, "named": 1000, **dict.fromkeys(FINDINGS, 0), "seconds": 9.6}
    report.save(path, "b", {**row, "inputs": 1}, ["a", "b"])
    report.save(path, "b", row, ["a", "b"])
    rows = report.save(path, "a", row, ["a", "b"])
    assert list(rows) == ["a", "b"]
    page.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    report.write_page(page, rows)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| b | 1,200 | 200 | 1,000 | 0 | 0 | 0 | 0 | 10 |" in text
    assert "| all | 2,400 | 400 | 2,000 | 0 | 0 | 0 | 0 | 19 |" in text


def test_the_page_shows_the_figures_that_are_kept():
    rows = json.loads((ROOT / "docs/results/fuzz.json").read_text())["readers"]
    assert list(rows) == [reader.name for reader in READERS]
    assert report.table(rows) in (ROOT / "docs/fuzz.md").read_text()
    assert not any(row[outcome] for row in rows.values() for outcome in FINDINGS)
