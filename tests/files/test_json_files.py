"""JSON of others: what fits its shape is handed on, all else is named with its place."""

import json
import os

import pytest

from sft_jax.files import json_files
from sft_jax.files.json_files import (
    all_of,
    check_value,
    file_name,
    integer,
    list_of,
    map_of,
    nullable,
    number,
    parse,
    read_json,
    read_lines,
    read_text,
    record,
    text,
    write_json,
)
from sft_jax.runs.run_files import data_shape
from sft_jax.runs.study_files import study_shape
from sft_jax.types import CheckpointError, DataError

SHAPE = record({"step": integer()}, {"loss": nullable(number()), "names": list_of(text(4), 1)})


@pytest.mark.parametrize(
    "value",
    [
        {"step": 0},
        {"step": 2**63 - 1, "loss": None, "other": [1]},
        {"step": 3, "loss": 2, "names": ["abcd", ""]},
    ],
)
def test_what_fits_is_handed_on(value):
    assert parse(json.dumps(value), "x", SHAPE, "again") == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"^x: found \[\], expected an object with step; again$"),
        ("{}", r"^x: found \[\], expected also \['step'\]; again$"),
        ('{"step": true}', r"^x: step: found True, expected a whole number from 0 to"),
        ('{"step": 1.0}', "step: found 1.0"),
        ('{"step": -1}', "step: found -1"),
        (f'{{"step": {2**63}}}', "step: found 9223372036854775808, expected a whole number"),
        ('{"step": 1, "loss": NaN}', "loss: found nan, expected a finite number"),
        ('{"step": 1, "loss": 1e999}', "loss: found inf"),
        (f'{{"step": 1, "loss": 1{"0" * 400}}}', "loss: found 1000.*0000, expected a finite"),
        ('{"step": 1, "loss": "1"}', "loss: found '1'"),
        ('{"step": 1, "names": []}', "names: found 0 entries, expected at least 1"),
        ('{"step": 1, "names": "ab"}', "names: found 'ab', expected a list"),
        ('{"step": 1, "names": ["abcde"]}', r"names\[0\]: found 5 characters, expected at most 4"),
        ('{"step": 1, "names": ["a", 3]}', r"names\[1\]: found 3, expected text"),
        ('{"step": 1, "names": ["\\ud800"]}', "halves of characters"),
        ('{"step": 1', "found no JSON .*expected an object; again"),
        ("[" * 100_000, "found no JSON"),
        ('{"step": 1' + "0" * 5000 + "}", "found no JSON .*Exceeds the limit"),
    ],
)
def test_what_does_not_fit_is_named(content, message):
    with pytest.raises(CheckpointError, match=message):
        parse(content, "x", SHAPE, "again")


def test_nan_stands_for_what_is_undefined():
    check_value({"a": float("nan")}, map_of(number(undefined=True)), "x", "again")
    with pytest.raises(DataError, match=r"^x: a: found nan, expected a finite"):
        check_value({"a": float("nan")}, map_of(number()), "x", "again")


def test_both_shapes_count():
    shape = all_of(record({"a": integer()}), map_of(integer(most=3)))
    check_value({"a": 1, "b": 3}, shape, "x", "again")
    with pytest.raises(DataError, match="b: found 4"):
        check_value({"a": 1, "b": 4}, shape, "x", "again")


def test_other_entries_of_a_record_may_have_a_shape():
    shape = record({"a": integer()}, {"b": map_of(integer())}, others=number())
    check_value({"a": 1, "b": {}, "c": 0.5}, shape, "x", "again")
    with pytest.raises(DataError, match="x: c: found 'd', expected a finite number"):
        check_value({"a": 1, "c": "d"}, shape, "x", "again")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b", ".", "..", ".hidden", "a\0b", "a\n"])
def test_a_name_with_a_path_in_it_is_none(name):
    with pytest.raises(DataError, match=r"a part of a file's name"):
        check_value(name, file_name, "x", "again")
    check_value(f"a{len(name)}.b-c d", file_name, "x", "again")


def test_files_that_are_none(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_bytes(b"\xff{}")
    with pytest.raises(CheckpointError, match=r"a.json: found no text .*expected UTF-8"):
        read_json(tmp_path / "a.json", SHAPE)
    with pytest.raises(DataError, match=r"b.json: found no text .*No such file"):
        read_text(tmp_path / "b.json", "again", DataError)
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_json(tmp_path, SHAPE)
    (tmp_path / "c.json").write_text('{"step": 12}')
    assert read_json(tmp_path / "c.json", SHAPE) == {"step": 12}
    monkeypatch.setattr(json_files, "LARGEST_FILE", 11)
    with pytest.raises(CheckpointError, match=r"c.json: found 12 bytes, expected at most 11"):
        read_json(tmp_path / "c.json", SHAPE)


def lines_of(path, **options):
    return list(read_lines(path, SHAPE, "again", **options))


def test_lines_are_read_one_by_one_whatever_the_file_holds(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    monkeypatch.setattr(json_files, "LARGEST_FILE", 100)
    monkeypatch.setattr(json_files, "LONGEST_LINE", 20)
    path.write_text("".join(f'{{"step": {i}}}\n' for i in range(50)) + '{"step": 5')
    assert [line["step"] for line in lines_of(path, ended=True)] == list(range(50))
    with pytest.raises(CheckpointError, match=r"x.jsonl, line 51: found no JSON .*; again"):
        lines_of(path)
    # Lines before a bad one are there first.
    assert next(read_lines(path, SHAPE, "again")) == {"step": 0}
    path.write_text('{"step": 1}\r\n{"step": 2}')
    assert lines_of(path) == [{"step": 1}, {"step": 2}]
    path.write_text("")
    assert lines_of(path) == []


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"step": -1}', "step: found -1"),
        (b"", "found no JSON"),
        (b'"\xff"', "found no text .*expected UTF-8"),
        (b" " * 20, "found at least 20 bytes, expected fewer"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, monkeypatch, line, words, ended):
    monkeypatch.setattr(json_files, "LONGEST_LINE", 20)
    (tmp_path / "x").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match=rf"x, line 2: {words}.*; again"):
        lines_of(tmp_path / "x", ended=ended)
    with pytest.raises(CheckpointError, match="Is a directory"):
        lines_of(tmp_path, ended=ended)


def test_stored_names_lead_to_no_other_folder():
    study = {
        **dict.fromkeys(("title", "protocol", "metric"), "x"),
        **{"name": "toy", "class_names": [], "seeds": [0], "folds": [{"name": "a"}]},
    }
    check_value({**study, "settings": [{"name": "b"}]}, study_shape(), "x", "again")
    with pytest.raises(DataError, match=r"settings\[0\].name: found '../b', expected a part"):
        check_value({**study, "settings": [{"name": "../b"}]}, study_shape(), "x", "again")
    with pytest.raises(DataError, match=r"split: found '../test'"):
        check_value({"split": "../test"}, record({"split": file_name}), "x", "again")


def test_data_are_asked_for_what_is_needed():
    check_value({"fingerprint": "f"}, data_shape("fingerprint"), "x", "again")
    with pytest.raises(DataError, match=r"expected also \['normalizer'\]"):
        check_value({"fingerprint": "f"}, data_shape("fingerprint", "normalizer"), "x", "again")
    bad = {"kind": "rms", "shift": {"m": [0.0]}, "scale": {"m": [0.0]}}
    with pytest.raises(DataError, match=r"normalizer.scale.m\[0\]: found 0.0"):
        check_value({"normalizer": bad}, data_shape(), "x", "again")


def test_a_failed_write_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})
    with pytest.raises(TypeError):
        write_json(path, {"n": object()})
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_json(path, {"n": 2})
    assert json.loads(path.read_text()) == {"n": 1}
