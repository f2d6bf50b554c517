"""The lock files of `.ci/locks` are what setup.cfg asks for, and CI's selection is there."""

import configparser
import re

import pytest
from doc_pages import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

LOCKS = {path.stem: path.read_text() for path in (ROOT / ".ci" / "locks").glob("*.txt")}
MAKEFILE = (ROOT / "Makefile").read_text()
SETUP = (ROOT / "setup.cfg").read_text()


def setup():
    parsed = configparser.ConfigParser()
    parsed.read_string(SETUP)
    return parsed


def asked_for():
    """What the package and its tests ask for, extras of our own opened."""
    extras = setup()["options.extras_require"]
    lines = f"{setup()['options']['install_requires']}\n{extras['test']}\n{extras['demo']}"
    return [Requirement(line) for line in lines.split("\n") if line and "sft_jax[" not in line]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock):
    return {canonical(n): Version(v) for n, v in re.findall(r"^([\w.-]+)==(\S+)", lock, re.M)}


def test_there_is_a_lock_for_each_set_of_the_makefile():
    sets = re.search(r"^SETS := (.*)$", MAKEFILE, re.M)[1].split()
    assert sorted(sets) == sorted(LOCKS)
    oldest = setup()["options"]["python_requires"].removeprefix(">=")
    assert f"oldest-{oldest}" in sets
    assert all(f"Programming Language :: Python :: {s.split('-')[1]}\n" in SETUP for s in sets)


def test_the_oldest_set_is_every_lower_bound():
    found = pins(LOCKS["oldest-3.11"])
    for requirement in asked_for():
        (bound,) = (s for s in requirement.specifier if s.operator == ">=")
        pin = found[canonical(requirement.name)]
        # A bound stands for its first release: 77 for 77.0.1, where 77.0.0 was withdrawn.
        assert str(pin).startswith(bound.version), requirement
        assert requirement.specifier.contains(pin), requirement


def test_the_newest_set_is_within_the_bounds():
    oldest, newest = pins(LOCKS["oldest-3.11"]), pins(LOCKS["newest-3.13"])
    for requirement in asked_for():
        name = canonical(requirement.name)
        assert requirement.specifier.contains(newest[name]), requirement
        assert newest[name] >= oldest[name], name


@pytest.mark.parametrize("lock", LOCKS.values(), ids=list(LOCKS))
def test_every_pin_has_a_hash_and_no_line_an_address(lock):
    entries = re.split(r"^(?=[\w.-]+==)", lock, flags=re.M)[1:]
    assert len(entries) == len(pins(lock)) > 50
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    assert "://" not in lock
    assert not re.search(r"^\s*-(-index|-extra|-find|i|f)", lock, re.M)


def test_selected_modules_are_there():
    lines = (ROOT / ".ci" / "selection.txt").read_text().splitlines()
    chosen = [line for line in lines if not line.startswith("#")]
    assert len(chosen) == len(set(chosen)) > 10
    assert all((ROOT / path).is_file() for path in chosen)


def test_a_lower_bound_of_jax_in_an_extra_is_that_of_the_package():
    bounds = set(re.findall(r"^\s*jax(?:\[\w+\])?>=(\S+)", SETUP, re.M))
    assert len(bounds) == 1
