import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.config.data import DataConfig, SyntheticOptions
from sft_jax.data.builders.synthetic import class_motif, motif_index, sample
from sft_jax.data.sources import open_source


@settings(max_examples=40)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 4)), min_size=1, max_size=8),
    min_length=st.floats(0, 1),
    missing_rate=st.floats(0, 1),
    index=st.integers(0, 10**6),
)
def test_samples_are_well_formed(shapes, min_length, missing_rate, index):
    options = SyntheticOptions(
        lengths=tuple(t for t, _ in shapes),
        feature_dims=tuple(f for _, f in shapes),
        min_length=min_length,
        missing_rate=missing_rate,
    )
    record = sample(options, 0, index)
    assert 0 <= record["label"] < options.num_classes
    present = 0
    for i, (t, f) in enumerate(shapes):
        x, mask = record["inputs"][f"m{i}"], record["mask"][f"m{i}"]
        assert x.shape == (t, f)
        assert x.dtype == np.float32
        assert mask.shape == (t,)
        steps = int(mask.sum())
        np.testing.assert_array_equal(mask, np.arange(t) < steps)  # padded at the end
        assert not x[~mask].any()
        assert steps == 0 or min_length * t <= steps <= t
        present += steps > 0
    assert present >= 1


def test_every_sample_is_its_own_draw():
    options = SyntheticOptions()
    again = sample(options, 1, 7)
    sample(options, 0, 3)
    np.testing.assert_array_equal(sample(options, 1, 7)["inputs"]["m0"], again["inputs"]["m0"])
    others = [(options, 0, 7), (options, 1, 8), (SyntheticOptions(seed=1), 1, 7)]
    for other in others:
        assert not np.array_equal(sample(*other)["inputs"]["m1"], again["inputs"]["m1"])


def test_missing_and_length_rates():
    options = SyntheticOptions(min_length=1.0, missing_rate=0.3)
    masks = [sample(options, 0, i)["mask"] for i in range(1000)]
    gone = np.array([[not mask[m].any() for m in ("m0", "m1")] for mask in masks])
    # 0.3, less the samples in which both were drawn missing and one came back: 0.3 - 0.09 / 2.
    np.testing.assert_allclose(gone.mean(0), 0.255, atol=0.04)
    assert not gone.all(1).any()
    assert all(mask["m0"].all() for mask, g in zip(masks, gone[:, 0], strict=True) if not g)


def matched_filter(options, record, modality):
    """Which motif correlates best with some stretch of a modality, by direct search."""
    x = record["inputs"][f"m{modality}"][record["mask"][f"m{modality}"]]
    indices = sorted({motif_index(options, modality, c) for c in range(options.num_classes)})
    motifs = {}
    for c in range(options.num_classes):
        motifs[motif_index(options, modality, c)] = class_motif(options, modality, c)
    scores = [
        max(
            (x[s : s + len(motifs[i])] * motifs[i]).sum()
            for s in range(len(x) - len(motifs[i]) + 1)
        )
        for i in indices
    ]
    return indices[int(np.argmax(scores))]


def test_classes_are_found_by_all_modalities_but_not_by_one():
    options = SyntheticOptions(num_classes=4, missing_rate=0.0)
    records = [sample(options, 0, i) for i in range(200)]
    digits = [tuple(matched_filter(options, r, m) for m in (0, 1)) for r in records]
    correct = np.mean(
        [2 * high + low == r["label"] for (high, low), r in zip(digits, records, strict=True)]
    )
    assert correct > 0.97
    # Each modality halves the classes, so alone it cannot do better than half.
    for modality in (0, 1):
        sharing = [motif_index(options, modality, c) for c in range(4)]
        assert sorted(sharing) == [0, 0, 1, 1]


@pytest.mark.parametrize("num_classes", [2, 3, 5, 9, 10])
def test_all_modalities_together_tell_every_class(num_classes):
    for lengths in ((8,), (8, 8), (8, 8, 8)):
        options = SyntheticOptions(
            lengths=lengths, feature_dims=(2,) * len(lengths), num_classes=num_classes
        )
        codes = {
            tuple(motif_index(options, m, c) for m in range(len(lengths)))
            for c in range(num_classes)
        }
        assert len(codes) == num_classes


def test_motif_has_unit_rms():
    motif = class_motif(SyntheticOptions(), 1, 2)
    assert motif.shape == (12, 4)
    np.testing.assert_allclose(np.sqrt((motif**2).mean()), 1, rtol=1e-6)


def test_prepared_records_equal_drawn_ones(tmp_path):
    options = SyntheticOptions(num_train=12, num_valid=3, num_test=0)
    source = open_source(DataConfig(options=options, data_dir=str(tmp_path)))
    for split, (name, size) in enumerate((("train", 12), ("valid", 3))):
        records = source.split(name)
        assert len(records) == size
        for index in range(size):
            expected = sample(options, split, index)
            np.testing.assert_equal(records[index], expected)
