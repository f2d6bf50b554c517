"""What is looked at by the types in a list is what a look at every entry finds."""

import collections

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sft_jax.files.pickles import count_entries
from sft_jax.files.rows import contains_text


class Pair(list):
    """A list of another type."""


def boxed(entries):
    made = np.empty(len(entries), object)
    made[:] = entries
    return made


SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=2)),
    *(st.binary(max_size=2), st.just(np.float32(2)), st.just(np.arange(3)), st.just({1})),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(Pair),
        st.dictionaries(st.integers(0, 9), inner, max_size=3),
        st.dictionaries(st.integers(0, 9), inner, max_size=3).map(collections.OrderedDict),
        st.lists(st.one_of(st.none(), st.integers(), st.dictionaries(st.integers(), inner))).map(
            boxed
        ),
        # The same entry again.
        inner.map(lambda entry: [entry, (entry, entry)]),
    ),
    max_leaves=12,
)


def text_entry_by_entry(value):
    if isinstance(value, list | tuple):
        return any(map(text_entry_by_entry, value))
    return isinstance(value, str | bytes)


def count_entry_by_entry(value):
    if isinstance(value, dict):
        return 1 + sum(map(count_entry_by_entry, value.values()))
    if isinstance(value, list | tuple):
        return 1 + sum(map(count_entry_by_entry, value))
    if isinstance(value, np.ndarray) and value.dtype == object:
        return 1 + sum(map(count_entry_by_entry, value.flat))
    return 1


@given(VALUES)
def test_text_is_found_as_entry_by_entry(value):
    assert contains_text(value) == text_entry_by_entry(value)


@given(VALUES)
def test_entries_are_counted_as_one_by_one(value):
    assert count_entries(value, {}) == count_entry_by_entry(value)


def test_a_list_that_holds_itself_is_counted_once():
    value = [1, 2.0]
    value += [value, (value, value)]
    # Itself, four entries, and in the tuple two that are counted already.
    assert count_entries(value, {}) == 1 + 2 + 1 + (1 + 2)
    assert count_entries(np.empty((), object), {}) == 2
