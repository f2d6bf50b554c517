import types

import numpy as np
import pytest

from sft_jax.config.modality import ModalitySpec
from sft_jax.reports import example_recording
from sft_jax.reports.figures import run_figures
from sft_jax.runs import example_file
from sft_jax.types import DataError

PATCHES = ModalitySpec(name="p", length=12, feature_dim=4, tokenizer="patch", patch=(3, 2), k=2)
BOXES = ModalitySpec(
    name="b",
    length=4,
    feature_dim=12,
    tokenizer="tubelet",
    frame=(2, 2, 3),
    tubelet=(2, 1, 2),
    k=2,
)
STEPS = ModalitySpec(name="s", length=4, feature_dim=1, k=2)
WORDS = ModalitySpec(name="w", length=4, feature_dim=9, tokenizer="token", k=2)


def test_spans_of_patches_repeat_over_features():
    expected = [[0, 3], [0, 3], [3, 6], [3, 6], [6, 9], [6, 9], [9, 12], [9, 12]]
    assert example_recording.token_spans(PATCHES).tolist() == expected


def test_spans_of_tubelets_repeat_over_rows_and_columns():
    assert example_recording.token_spans(BOXES).tolist() == [[0, 2], [0, 2], [2, 4], [2, 4]]


def test_spans_of_time_steps_are_one_step_long():
    assert example_recording.token_spans(STEPS).tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


def test_a_recording_is_windows_that_do_not_overlap():
    groups = ["a"] * 7 + ["b"] * 2
    assert example_recording.recording_rows(groups, {"window": 6, "step": 2}) == [0, 3, 6]
    assert example_recording.recording_rows(groups, {"window": 6, "step": 2}, most=2) == [0, 3]


def test_a_recording_is_one_record_where_windows_are_unknown_or_do_not_meet():
    assert example_recording.recording_rows(["a", "a"], {}) == [0]
    assert example_recording.recording_rows(["a", "a"], {"window": 5, "step": 2}) == [0]


def test_recording_joins_windows_in_time():
    records = [
        {"inputs": {"s": np.full((4, 1), row, np.float32), "w": np.zeros(4, np.int32)}}
        for row in range(3)
    ]
    predictions = {
        "kept/s/indices": np.array([[1, 3], [9, 9], [0, -1]]),
        "kept/s/saliency": np.array([[0.5, 0.25], [9, 9], [0.75, 0]], np.float32),
        "kept/w/indices": np.zeros((3, 2), int),
    }
    shown = example_recording.recording(
        records, predictions, (STEPS, WORDS), rows=[0, 2], sampling_rate=2.0, title="x"
    )
    assert list(shown.signals) == ["s"]  # ids cannot be drawn as a signal
    assert shown.signals["s"][:, 0].tolist() == [0, 0, 0, 0, 2, 2, 2, 2]
    assert shown.kept["s"].tolist() == [1, 3, 4, -1]
    assert shown.saliency["s"].tolist() == [0.5, 0.25, 0.75, 0]
    assert shown.spans["s"].tolist() == [[i, i + 1] for i in range(8)]


def test_a_pool_that_draws_has_tokens_to_show_and_no_saliency(tmp_path):
    records = [{"inputs": {"s": np.ones((4, 1), np.float32)}}]
    predictions = {"kept/s/indices": np.array([[2, 0]])}
    shown = example_recording.recording(
        records, predictions, (STEPS,), rows=[0], sampling_rate=1.0, title="x"
    )
    assert shown.kept["s"].tolist() == [2, 0]
    assert shown.saliency == {}
    loaded = example_file.load_example(example_file.save_example(tmp_path / "example.npz", shown))
    assert loaded.saliency == {}
    assert len(run_figures.kept_tokens(loaded).axes) == 1


def test_recording_is_none_without_a_pool_that_selects():
    shown = example_recording.recording([], {}, (STEPS,), rows=[0], sampling_rate=1.0, title="x")
    assert shown is None


def test_a_recording_is_found_by_its_name():
    groups = ["a"] * 4 + ["b"] * 3
    assert example_recording.recording_rows(groups, {"window": 4, "step": 2}, "b") == [4, 6]
    with pytest.raises(DataError, match="group: given 'c', expected one of a, b"):
        example_recording.recording_rows(groups, {}, "c")


def source_of(groups, sampling_rate):
    """As little of an opened source as a recording is taken from."""
    records = [{"inputs": {"s": np.full((4, 1), i, np.float32)}} for i in range(len(groups))]
    modality = types.SimpleNamespace(sampling_rate=sampling_rate)
    info = types.SimpleNamespace(options={"window": 4, "step": 4}, modalities=(modality,))
    return types.SimpleNamespace(
        split={"test": records}.__getitem__, groups={"test": groups}.__getitem__, info=info
    )


def test_a_recording_of_a_split_is_its_windows_and_what_was_kept_of_them():
    predictions = {"kept/s/indices": np.array([[0, 1], [1, 2], [2, 3]])}
    source = source_of(["a", "b", "b"], sampling_rate=2.0)
    shown = example_recording.of_split(source, "test", predictions, (STEPS,), "b")
    assert shown.signals["s"][:, 0].tolist() == [1] * 4 + [2] * 4
    assert shown.kept["s"].tolist() == [1, 2, 6, 7]
    assert (shown.title, shown.sampling_rate) == ("b (test split)", 2.0)
    assert (
        example_recording.of_split(source, "test", predictions, (STEPS,)).title == "a (test split)"
    )
    drawn = run_figures.kept_tokens(shown)
    assert drawn.axes[0].get_title(loc="left") == "s: 4 of 8 tokens kept"
