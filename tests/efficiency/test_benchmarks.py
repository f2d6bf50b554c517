"""Tables, exponents and profile on rates that were made up, and one real sweep."""

import gzip
import json

import jax.numpy as jnp
import pytest

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, ModelConfig, TrainConfig
from sft_jax.efficiency import benchmarks, measure
from sft_jax.efficiency.benchmarks import Point
from sft_jax.efficiency.measure import Candidate, Measurement, Rate
from sft_jax.types import ConfigError


def measurement(train, infer, temporary):
    return Measurement(
        rate={
            "train": Rate(train, train / 2, train * 2),
            "infer": Rate(infer, infer / 2, infer * 2),
        },
        compile_seconds={"train": 2.0, "infer": 1.25},
        temporary_bytes={"train": temporary, "infer": None},
        parameters=10,
        gflop={"train": 1.5, "infer": 0.5},
        share_of_peak={"train": 0.25, "infer": 0.123},
    )


def test_rows_state_medians_spreads_and_ratios_to_the_first():
    measured = {"sft": measurement(20.0, 100.0, 200_000_000), "dense": measurement(5.0, 20.0, None)}
    first, second = benchmarks.model_rows(measured)
    assert first == {
        "model": "sft",
        "parameters": 10,
        "train samples/s": 20.0,
        "low to high": "10.0 to 40.0",
        "times": 1.0,
        "inference samples/s": 100.0,
        "low to high ": "50.0 to 200.0",
        "times ": 1.0,
        "train temporary MB": 200.0,
        "inference temporary MB": None,
        "forward GFLOP": 0.5,
        "train peak share": "25%",
        "inference peak share": "12%",
        "compile s": 3.2,
    }
    assert (second["times"], second["times "]) == (0.25, 0.2)
    assert second["train temporary MB"] is None


def test_memory_of_processes_is_a_column_where_it_was_measured():
    measured = {"sft": measurement(20.0, 100.0, 1), "dense": measurement(5.0, 20.0, 1)}
    rows = benchmarks.model_rows(measured, {"sft": 300_000_000, "dense": 2_000_000_000})
    assert [row["process MB"] for row in rows] == [300.0, 2000.0]
    assert "process MB" not in benchmarks.model_rows(measured)[0]


def point(value, model, milliseconds, temporary, batch_size=2):
    rate = Rate(1e3 / milliseconds, 0.5e3 / milliseconds, 2e3 / milliseconds)
    sizes = {"train": temporary, "infer": None if temporary is None else temporary // 2}
    return Point(value, model, batch_size, {"train": rate, "infer": rate}, sizes)


def test_rows_and_json_of_a_sweep_are_costs_of_a_sample():
    measured = point(1024, "sft", 8.0, 6_000_000)
    assert benchmarks.sweep_rows([measured], "length") == [
        {
            "length": 1024,
            "model": "sft",
            "train ms": 8.0,
            "low to high": "4 to 16",
            "inference ms": 8.0,
            "low to high ": "4 to 16",
            "train temporary MB": 3.0,
            "inference temporary MB": 1.5,
        }
    ]
    data = measured.to_json("length")
    assert (data["length"], data["model"], data["batch_size"]) == (1024, "sft", 2)
    assert data["train"] == {
        "samples_per_second": {"median": 125.0, "low": 62.5, "high": 250.0},
        "milliseconds_per_sample": 8.0,
        "temporary_bytes_per_sample": 3e6,
    }


def test_exponents_are_fitted_for_every_model_and_cost():
    points = [
        made
        for value in (1, 2, 4)
        for made in (
            point(value, "linear", 3.0 * value, 1_000_000),
            point(value, "quadratic", 0.5 * value**2, None),
        )
    ]
    powers = benchmarks.exponents(points)
    assert list(powers) == ["linear", "quadratic"]
    assert powers["linear"]["train"] == pytest.approx({"time": 1, "temporary": 0}, abs=1e-9)
    assert powers["quadratic"]["infer"]["time"] == pytest.approx(2)
    assert powers["quadratic"]["infer"]["temporary"] is None
    assert benchmarks.exponent_rows(powers)[1] == {
        "model": "quadratic",
        "train time": 2.0,
        "inference time": 2.0,
        "train temporary": None,
        "inference temporary": None,
    }


def config():
    spec = ModalitySpec(name="a", length=8, feature_dim=2, pool="max", window=4)
    model = ModelConfig(num_classes=3, embed_dim=4, num_heads=1, num_post_layers=1)
    return Config(modalities=(spec,), model=model, train=TrainConfig(batch_size=4))


def test_all_values_and_models_of_a_sweep_take_turns(monkeypatch):
    order = []

    def candidate(config):
        name, size = config.model.name, config.train.batch_size

        def call(kind):
            order.append((size, name, kind))
            return jnp.zeros(())

        memory = {"train": size, "infer": 1}
        return Candidate(config, lambda: call("train"), lambda: call("infer"), {}, memory, None)

    monkeypatch.setattr(benchmarks, "candidate", candidate)
    late = Config(
        modalities=config().modalities,
        model=ModelConfig(name="late", num_classes=3),
        train=config().train,
    )
    points = benchmarks.sweep_points({"sft": config(), "late": late}, "batch", (2, 6), 2, 1)
    one_round = [
        (size, name, kind)
        for size in (2, 6)
        for name in ("sft", "late")
        for kind in ("train", "infer")
    ]
    assert order == one_round * 3
    found = [(p.value, p.model, p.batch_size, p.temporary("train")) for p in points]
    assert found == [(2, "sft", 2, 1), (2, "late", 2, 1), (6, "sft", 6, 1), (6, "late", 6, 1)]


def test_a_profile_names_the_steps_of_every_candidate(tmp_path):
    def call():
        return jnp.ones(3) + 1

    candidate = Candidate(config(), call, call, {}, {}, call)
    measure.profile({"sft": candidate, "torch eager": candidate}, tmp_path)
    (trace,) = tmp_path.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event.get("name") for event in events]
    for name in ("sft train", "sft infer", "torch eager train", "torch eager infer"):
        assert names.count(name) == 3
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


def test_a_sweep_of_values_that_do_not_fit_stops_before_any_work():
    with pytest.raises(ConfigError, match="embed_dim"):
        benchmarks.sweep({"sft": config()}, "width", ["0"], 1, 1)


def test_results_of_models_name_every_circumstance(monkeypatch):
    def call():
        return jnp.zeros(())

    def candidate(config):
        memory = {"train": 2_000_000, "infer": None}
        return Candidate(config, call, call, {"train": 1.0, "infer": 1.0}, memory, call)

    monkeypatch.setattr(benchmarks, "candidate", candidate)
    monkeypatch.setattr(benchmarks, "matmul_peak", {"float32": 5e9}.__getitem__)
    monkeypatch.setattr(benchmarks, "peak_memory_of", lambda run: 3_000_000 if run is call else 0)

    def others(config, batch):
        assert len(batch["id"]) == config.train.batch_size
        return {"other": (call, call, call)}

    result = benchmarks.compare_models({"sft": config()}, 1, 2, others, process_memory=True)
    (rows,) = result.tables.values()
    assert [(row["model"], row["process MB"]) for row in rows] == [("sft", 3.0), ("other", 3.0)]
    assert [row["train temporary MB"] for row in rows] == [2.0, None]
    numbers = result.numbers
    assert (numbers["batch_size"], numbers["rounds"], numbers["steps_per_round"]) == (4, 1, 2)
    assert numbers["matmul_peak_flops_per_second"] == 5e9
    assert numbers["models"]["other"]["process_peak_bytes"] == 3_000_000
    assert "batch 4, float32, no mixup" in result.note
    assert result.text(lambda rows: f"{len(rows)} rows") == f"2 rows\n\n{result.note}"


def test_exponents_of_a_sweep_need_numbers(monkeypatch):
    def points_of(configs, axis, values, *rounds):
        return [point(value, "sft", 2.0 * (1 + i), 1_000_000) for i, value in enumerate(values)]

    monkeypatch.setattr(benchmarks, "sweep_points", points_of)
    lengths = benchmarks.sweep({"sft": config()}, "length", ["16", "32"], 1, 1)
    assert [table[0]["model"] for table in lengths.tables.values()] == ["sft", "sft"]
    assert lengths.numbers["exponents"]["sft"]["train"]["time"] == pytest.approx(1)
    assert "Exponent of length" in lengths.text(str)
    dtypes = benchmarks.sweep({"sft": config()}, "dtype", [], 1, 1)
    assert (len(dtypes.tables), dtypes.numbers["exponents"]) == (1, {})
    assert [row["dtype"] for row in dtypes.tables[""]] == ["float32", "bfloat16"]
