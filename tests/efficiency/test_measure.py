import dataclasses
import functools
import time

import jax
import numpy as np
import pytest

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, ModelConfig, TrainConfig
from sft_jax.efficiency import measure, throughput
from sft_jax.efficiency import model_costs as models
from sft_jax.efficiency.measure import Candidate, Rate
from sft_jax.efficiency.throughput import Timing
from sft_jax.types import ConfigError


def config():
    spec = ModalitySpec(name="a", length=8, feature_dim=2, pool="max", window=4)
    model = ModelConfig(num_classes=3, embed_dim=4, num_heads=1, num_post_layers=1)
    return Config(
        modalities=(spec,), model=model, train=TrainConfig(batch_size=2 * jax.device_count())
    )


def test_rates_are_samples_over_seconds_with_low_and_high_the_right_way_round():
    rate = Rate.of(Timing(median=2.0, low=1.0, high=4.0), batch_size=8)
    assert rate == Rate(median=4.0, low=2.0, high=8.0)


def fake(seconds):
    """A candidate of four samples with calls of given durations."""

    def call(kind):
        time.sleep(seconds[kind])
        return np.zeros(())

    return Candidate(
        dataclasses.replace(config(), train=TrainConfig(batch_size=4)),
        lambda: call("train"),
        lambda: call("infer"),
        {"train": 1.5, "infer": 0.5},
        {"train": 7, "infer": None},
        lambda: None,
    )


def test_measurements_and_their_json():
    candidates = {
        "quick": fake({"train": 0.01, "infer": 0.0}),
        "slow": fake({"train": 0.03, "infer": 0.0}),
    }
    measured = measure.measure(candidates, peak=1e9, repeats=3, window=2)
    assert list(measured) == ["quick", "slow"]
    quick, slow = (measured[name].rate["train"] for name in candidates)
    assert slow.high <= 4 / 0.03 < quick.high <= 4 / 0.01  # a sleep is never shorter
    assert quick.low <= quick.median <= quick.high
    data = measured["quick"].to_json()
    assert data["parameters"] == models.num_parameters(config())
    assert set(data) == {"parameters", "train", "infer"}
    train = data["train"]
    assert train["samples_per_second"] == quick._asdict()
    assert (train["compile_seconds"], train["temporary_bytes"]) == (1.5, 7)
    assert data["infer"]["temporary_bytes"] is None
    assert train["gflop_per_sample"] == models.train_gflop(config())
    assert data["infer"]["gflop_per_sample"] == models.forward_gflop(config())
    assert train["share_of_peak"] == pytest.approx(models.train_gflop(config()) * quick.median)


def test_a_window_is_waited_for_whole_and_once(monkeypatch):
    waited = []
    monkeypatch.setattr(throughput.jax, "block_until_ready", lambda x: waited.append(x))
    calls = iter(range(6))
    throughput.time_interleaved({"a": lambda: next(calls)}, repeats=1, window=3)
    assert waited == [[0, 1, 2], [3, 4, 5]]


def test_a_candidate_trains_and_evaluates_the_configured_model():
    entry = measure.candidate(config())
    losses = [float(np.divide(*m["loss"])) for m in (entry.train() for _ in range(20))]
    assert losses[-1] < losses[0]
    outputs = entry.infer()
    assert outputs["outputs"].shape == (config().train.batch_size, 3)
    assert entry.batch_size == config().train.batch_size
    # Inference uses what training has reached.
    assert float(outputs["sums"]["loss"][0].mean()) < losses[0]
    assert min(entry.compile_seconds.values()) > 0
    assert entry.temporary_bytes["train"] > 0


def test_another_library_s_calls_are_made_once_to_compile_them():
    made = []
    entry = measure.uncompiled(
        config(), lambda: made.append("train"), lambda: made.append("infer"), lambda: None
    )
    assert made == ["train", "infer"]
    assert entry.batch_size == config().train.batch_size
    assert entry.temporary_bytes == {"train": None, "infer": None}
    assert min(entry.compile_seconds.values()) >= 0


def test_what_the_data_would_decide_must_be_set():
    left = dataclasses.replace(config(), model=dataclasses.replace(config().model, num_classes=0))
    with pytest.raises(
        ConfigError, match="given 1 modalities and 0 outputs, expected at least one"
    ):
        measure.candidate(left)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_is_of_products_in_the_given_dtype(dtype, monkeypatch):
    seen = []

    def timed(calls, repeats):
        seen.extend(jax.eval_shape(call).dtype for call in calls.values())
        return dict.fromkeys(calls, Timing(median=4.0, low=2.0, high=9.0))

    monkeypatch.setattr(throughput, "time_interleaved", timed)
    assert throughput.matmul_peak(dtype) == jax.device_count() * 2 * 1024**3 / 2.0
    assert seen == [dtype]


def hold(size):
    return np.ones(size, np.uint8).sum()


def test_memory_of_a_process_is_its_own_and_sees_what_was_held():
    ballast = np.ones(300_000_000, np.uint8)
    assert throughput.peak_memory() > ballast.nbytes
    little = throughput.peak_memory_of(functools.partial(hold, 1))
    assert throughput.peak_memory_of(functools.partial(hold, 200_000_000)) - little > 150e6
    assert little < throughput.peak_memory()


def test_the_bandwidth_counts_two_arrays_read_and_one_written(monkeypatch):
    seen = []

    def timed(calls, repeats):
        (call,) = calls.values()
        seen.extend(np.unique(call()).tolist() for _ in range(2))
        return dict.fromkeys(calls, Timing(median=4.0, low=2.0, high=9.0))

    monkeypatch.setattr(throughput, "time_interleaved", timed)
    monkeypatch.setattr(throughput, "_STREAM_SIZE", 1000)
    assert throughput.memory_bandwidth() == 3 * jax.device_count() * 1000 * 4 / 2.0
    assert seen == [[1.0], [2.0]]


def test_intensities_are_operations_over_bytes_of_a_sample():
    entry = fake({"train": 0.0, "infer": 0.0})
    moved = {"train": 4 * 50_000, "infer": 4 * 20_000}  # of a batch of four
    candidates = {"a": entry._replace(moved_bytes=moved.__getitem__)}
    measured = measure.measure(candidates, peak=1e9, repeats=1, window=1)
    train, infer = measure.intensities(candidates, measured)
    assert (train["model"], train["kind"], infer["kind"]) == ("a", "train", "infer")
    flops = models.train_gflop(config()) * 1e9
    assert train["flops_per_byte"] == pytest.approx(flops / 50_000)
    assert train["flops_per_second"] == pytest.approx(flops * measured["a"].rate["train"].median)
    assert infer["flops_per_byte"] == pytest.approx(models.forward_gflop(config()) * 1e9 / 20_000)


def test_bytes_of_a_candidate_are_those_of_all_its_devices():
    entry = measure.candidate(config())
    # Every device reads its parameters, so that the whole is more than once through the batch.
    parameters = 4 * models.num_parameters(config())
    assert entry.moved_bytes("infer") > jax.device_count() * parameters
    assert entry.moved_bytes("train") > entry.moved_bytes("infer")
