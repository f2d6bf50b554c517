import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.config.modality import ModalitySpec
from sft_jax.data.pipeline import Normalizer, collate, eval_batches, infer_modalities, train_batches
from sft_jax.data.records import DataInfo, ModalityInfo, ModalityStatistics
from sft_jax.types import ConfigError, DataError

STATISTICS = {
    "a": ModalityStatistics(mean=(1.0, -2.0, 5.0), std=(2.0, 4.0, 0.0), rms=3.0, count=9),
    "z": ModalityStatistics(mean=(0.0,), std=(0.0,), rms=0.0, count=0),
}
SPECS = (
    ModalitySpec(name="a", length=5, feature_dim=3, k=2),
    ModalitySpec(name="w", length=4, feature_dim=9, tokenizer="token", k=1),
)


def make_records(count, seed=0):
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        steps = np.arange(4) < rng.integers(1, 5)
        words = np.arange(4) < rng.integers(0, 5)
        records.append(
            {
                "inputs": {
                    "a": np.where(steps[:, None], rng.normal(size=(4, 3)), 0).astype(np.float32),
                    "w": np.where(words, rng.integers(0, 9, 4), 0).astype(np.int32),
                },
                "mask": {"a": steps, "w": words},
                "label": i % 5,
                "id": f"r{i}",
                "value": i / 2,
                "group": f"r{i}",
            }
        )
    return records


NONE = Normalizer.from_statistics(STATISTICS, "none")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # x = [3, 2, 5]: (3 - 1) / 2, (2 + 2) / 4, and the constant channel only centred.
        ("channel", [1, 1, 0]),
        ("rms", [1, 2 / 3, 5 / 3]),
        ("none", [3, 2, 5]),
    ],
)
def test_normalizer_by_hand(kind, expected):
    normalizer = Normalizer.from_statistics(STATISTICS, kind)
    x = np.array([[3, 2, 5], [7, 7, 7]], np.float32)
    y = normalizer("a", x, np.array([True, False]))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y[0], expected, rtol=1e-6)
    assert not y[1].any()


@pytest.mark.parametrize("kind", ["channel", "rms", "none"])
def test_normalizer_never_divides_by_zero(kind):
    normalizer = Normalizer.from_statistics(STATISTICS, kind)
    y = normalizer("z", np.ones((2, 1), np.float32), np.ones(2, bool))
    np.testing.assert_array_equal(y, np.ones((2, 1)))


def test_a_constant_channel_is_known_by_its_rounding():
    # The deviation left by float32 rounding around a large mean must not become the scale.
    close = ModalityStatistics(mean=(1e4,), std=(1e-4,), rms=1e4, count=9)
    small = ModalityStatistics(mean=(0.0,), std=(1e-9,), rms=1e-9, count=9)
    normalizer = Normalizer.from_statistics({"c": close, "s": small}, "channel")
    assert normalizer.scale["c"] == (1.0,)
    assert normalizer.scale["s"] == (1e-9,)


@pytest.mark.parametrize("kind", ["channel", "rms", "none"])
def test_normalizer_survives_json(kind):
    normalizer = Normalizer.from_statistics(STATISTICS, kind)
    again = Normalizer.from_json(json.loads(json.dumps(normalizer.to_json())))
    assert again == normalizer
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    mask = np.ones(4, bool)
    np.testing.assert_array_equal(again("a", x, mask), normalizer("a", x, mask))


def test_channel_normalisation_standardises():
    x = np.random.default_rng(0).normal(3, 5, size=(1000, 2)).astype(np.float32)
    entry = ModalityStatistics(
        mean=tuple(x.mean(0).tolist()), std=tuple(x.std(0).tolist()), rms=1.0, count=1000
    )
    y = Normalizer.from_statistics({"x": entry}, "channel")("x", x, np.ones(1000, bool))
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-5)


def test_normalizer_leaves_ids_alone_and_names_strangers():
    normalizer = Normalizer.from_statistics(STATISTICS, "channel")
    ids = np.array([4, 2], np.int32)
    assert normalizer("w", ids, np.ones(2, bool)) is ids
    with pytest.raises(
        DataError, match="'b': found a modality without statistics, expected one of a"
    ):
        normalizer("b", np.ones((2, 3), np.float32), np.ones(2, bool))
    with pytest.raises(DataError, match="'a': found 2 features, expected 3"):
        normalizer("a", np.ones((2, 2), np.float32), np.ones(2, bool))
    with pytest.raises(ConfigError, match="normalization"):
        Normalizer.from_statistics(STATISTICS, "zscore")


def test_collate_pads_rows_and_steps():
    records = make_records(2)
    batch = collate(records, [7, 3], SPECS, NONE, batch_size=3)
    assert batch["inputs"]["a"].shape == (3, 5, 3)
    assert batch["inputs"]["w"].shape == (3, 4)
    assert batch["inputs"]["a"].dtype == batch["weight"].dtype == np.float32
    assert batch["inputs"]["w"].dtype == batch["target"].dtype == batch["id"].dtype == np.int32
    for row, record in enumerate(records):
        for name in ("a", "w"):
            np.testing.assert_array_equal(batch["inputs"][name][row, :4], record["inputs"][name])
            np.testing.assert_array_equal(batch["mask"][name][row, :4], record["mask"][name])
    assert not batch["inputs"]["a"][:, 4:].any()
    assert not batch["mask"]["a"][:, 4:].any()
    np.testing.assert_array_equal(batch["target"], [0, 1, 0])
    np.testing.assert_array_equal(batch["weight"], [1, 1, 0])
    np.testing.assert_array_equal(batch["id"], [7, 3, -1])
    assert not any(mask[2].any() for mask in batch["mask"].values())
    assert not any(x[2].any() for x in batch["inputs"].values())


def test_collate_takes_a_subset_of_modalities_and_normalises():
    normalizer = Normalizer.from_statistics(STATISTICS, "channel")
    record = make_records(1)[0]
    batch = collate([record], [0], SPECS[:1], normalizer, 1)
    assert set(batch["inputs"]) == {"a"}
    expected = normalizer("a", record["inputs"]["a"], record["mask"]["a"])
    np.testing.assert_array_equal(batch["inputs"]["a"][0, :4], expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModalitySpec(name="a", length=3, feature_dim=3, k=1), "found 4 time steps.*at most 3"),
        (ModalitySpec(name="a", length=4, feature_dim=2, k=1), "found 3 features.*feature_dim 2"),
        (ModalitySpec(name="b", length=4, feature_dim=2, k=1), "'b': found only a, w"),
        (
            ModalitySpec(name="w", length=4, feature_dim=1, tokenizer="token", k=1),
            "found id [0-9], expected ids below 1",
        ),
        (ModalitySpec(name="w", length=4, feature_dim=9, k=1), r"expected features \[t, f\]"),
        (
            ModalitySpec(name="a", length=4, feature_dim=9, tokenizer="token", k=1),
            r"shape \(4, 3\), expected ids \[t\]",
        ),
    ],
)
def test_collate_refuses_records_that_do_not_fit(spec, message):
    with pytest.raises(DataError, match=f"record 'r[0-9]': .*{message}"):
        collate(make_records(9), range(9), (spec,), NONE, 9)


def stream(records, batch_size, seed=0, **options):
    options = {"num_threads": 0, "prefetch": 1, **options}
    return train_batches(records, SPECS, NONE, batch_size=batch_size, seed=seed, **options)


def ids(batches):
    return [batch["id"].tolist() for batch in batches]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**40))
def test_epochs_hold_every_record_once_and_batches_do_not_cross_them(count, batch_size, seed):
    steps = math.ceil(count / batch_size)
    batches = stream(make_records(count), batch_size, seed)
    for _ in range(3):
        epoch = list(itertools.islice(batches, steps))
        drawn = [i for batch in ids(epoch) for i in batch]
        assert sorted(i for i in drawn if i >= 0) == list(range(count))
        assert drawn[:count] == [i for i in drawn if i >= 0]  # padding only at the very end
        weights = np.concatenate([batch["weight"] for batch in epoch])
        np.testing.assert_array_equal(weights, np.array(drawn) >= 0)


def test_order_is_fresh_every_epoch_and_for_every_seed():
    records = make_records(30)
    orders = []
    for seed in (0, 1, 2):
        batches = stream(records, 30, seed)
        orders += [tuple(ids([next(batches)])[0]) for _ in range(4)]
    assert len(set(orders)) == 12
    assert ids([next(stream(records, 30, 2))])[0] == list(orders[8])


def test_batches_hold_the_records_they_name():
    records = make_records(11)
    normalizer = Normalizer.from_statistics(STATISTICS, "rms")
    batches = train_batches(records, SPECS, normalizer, batch_size=4, seed=1)
    for batch in itertools.islice(batches, 6):
        chosen = [i for i in batch["id"].tolist() if i >= 0]
        expected = collate([records[i] for i in chosen], chosen, SPECS, normalizer, 4)
        np.testing.assert_equal(batch, expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(0, 99))
def test_slices_of_all_processes_make_the_global_batch(count, rows, processes, seed):
    records = make_records(count)
    batch_size = rows * processes
    whole = stream(records, batch_size, seed)
    parts = [
        stream(records, batch_size, seed, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    finite = [
        list(
            eval_batches(
                records,
                SPECS,
                NONE,
                batch_size=batch_size,
                process_index=p,
                process_count=processes,
            )
        )
        for p in range(processes)
    ]
    steps = math.ceil(count / batch_size)
    train = [[next(part) for _ in range(2 * steps)] for part in parts]
    expected = [next(whole) for _ in range(2 * steps)]
    for single, split in (
        (expected, train),
        (list(eval_batches(records, SPECS, NONE, batch_size=batch_size)), finite),
    ):
        for step, batch in enumerate(single):
            joined = [part[step] for part in split]
            for key in ("target", "weight", "id"):
                np.testing.assert_array_equal(np.concatenate([j[key] for j in joined]), batch[key])
            for key in ("inputs", "mask"):
                for name in ("a", "w"):
                    found = np.concatenate([j[key][name] for j in joined])
                    np.testing.assert_array_equal(found, batch[key][name])


def test_processes_must_divide_the_batch():
    for batches in (train_batches, eval_batches):
        options = {"seed": 0} if batches is train_batches else {}
        with pytest.raises(ConfigError, match="given 6 for 4 processes, expected a multiple of 4"):
            batches(
                make_records(3),
                SPECS,
                NONE,
                batch_size=6,
                process_index=0,
                process_count=4,
                **options,
            )


@settings(max_examples=15, deadline=None)
@given(
    stop=st.integers(0, 12),
    threads=st.sampled_from([0, 1, 3]),
    prefetch=st.sampled_from([1, 4]),
    other=st.sampled_from([(0, 1), (2, 5)]),
)
def test_resumes_anywhere_exactly(stop, threads, prefetch, other):
    records = make_records(10)
    first = stream(records, 4, num_threads=threads, prefetch=max(threads, prefetch))
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    expected = [next(first) for _ in range(7)]  # more than two epochs of three batches
    second = stream(records, 4, num_threads=other[0], prefetch=other[1])
    next(second)
    second.set_state(state)
    np.testing.assert_equal([next(second) for _ in range(7)], expected)


@pytest.mark.parametrize(("count", "batch_size"), [(0, 4), (1, 4), (8, 4), (9, 4)])
def test_evaluation_sees_every_record_once_in_order(count, batch_size):
    batches = list(eval_batches(make_records(count), SPECS, NONE, batch_size=batch_size))
    assert len(batches) == math.ceil(count / batch_size)
    drawn = [i for batch in ids(batches) for i in batch]
    assert drawn == [*range(count), *[-1] * (len(drawn) - count)]
    for batch in batches:
        assert set(batch) == {"inputs", "mask", "target", "weight", "id"}
        assert batch["target"].shape == (batch_size,)
        np.testing.assert_array_equal(batch["weight"], batch["id"] >= 0)
        np.testing.assert_array_equal(batch["target"], np.maximum(batch["id"], 0) % 5)


def info():
    return DataInfo(
        source="x",
        class_names=("0", "1"),
        modalities=(
            ModalityInfo(name="a", length=17, feature_dim=3, kind="feature"),
            ModalityInfo(name="w", length=4, feature_dim=9, kind="token"),
        ),
        statistics={},
        repairs={},
        num_records={},
        class_counts={},
        groups={},
        split_units={},
        options={},
        source_sha256="",
        fingerprint="",
        directory="",
    )


def test_modalities_come_from_the_data():
    assert infer_modalities(info(), ()) == (
        ModalitySpec(name="a", length=17, feature_dim=3, pool="attn_topk", k=3),
        ModalitySpec(name="w", length=4, feature_dim=9, tokenizer="token", pool="attn_topk", k=1),
    )


def test_given_modalities_are_kept_in_their_order_and_may_be_fewer():
    w = ModalitySpec(name="w", length=6, feature_dim=9, tokenizer="token", pool="none")
    a = ModalitySpec(name="a", length=20, feature_dim=3, pool="max", window=5)
    assert infer_modalities(info(), (w, a)) == (w, a)
    assert infer_modalities(info(), (w,)) == (w,)
    patch = ModalitySpec(
        name="a", length=20, feature_dim=3, tokenizer="patch", patch=(4, 3), pool="none"
    )
    assert infer_modalities(info(), (patch,)) == (patch,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "b"}, r"modalities\.b: given, but the data has a, w"),
        ({"length": 16}, r"a\.length: given 16, expected at least the data's 17"),
        ({"feature_dim": 4}, r"a\.feature_dim: given 4, expected the data's 3"),
        ({"tokenizer": "token"}, r"a\.tokenizer: given 'token' for feature data"),
        ({"name": "w", "feature_dim": 9}, r"w\.tokenizer: given 'feature' for token data"),
    ],
)
def test_given_modalities_must_fit_the_data(changes, message):
    spec = ModalitySpec(**{"name": "a", "length": 17, "feature_dim": 3, "k": 1, **changes})
    with pytest.raises(ConfigError, match=message):
        infer_modalities(info(), (spec,))


def test_a_record_without_any_modality_of_the_run_is_refused():
    record = make_records(1)[0]
    record["mask"]["w"][:] = False
    with pytest.raises(DataError, match=r"record 'r0': found no real step in any of w, expected"):
        collate([record], [0], SPECS[1:], NONE, 2)
    assert collate([record], [0], SPECS, NONE, 2)["weight"].tolist() == [1, 0]
