"""`python -m sft_jax.benchmark` and `python -m sft_jax.cost`, typed as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from slow import corners

from sft_jax.config.io import load
from sft_jax.efficiency.layer_costs import layer_costs
from sft_jax.efficiency.model_costs import num_parameters
from sft_jax.efficiency.variants import variant

ROOT = Path(__file__).parents[2]
CONFIG = """
from sft_jax.config.run import Config, ModelConfig, TrainConfig
from sft_jax.config.io import config_dict
from sft_jax.config.modality import ModalitySpec


def get_config():
    sizes = {"a": 12, "b": 8}
    return config_dict(
        Config(
            modalities=tuple(
                ModalitySpec(name=name, length=length, feature_dim=2, pool="max", window=4)
                for name, length in sizes.items()
            ),
            model=ModelConfig(num_classes=3, embed_dim=8, num_heads=2, num_post_layers=1),
            train=TrainConfig(batch_size=8),
        )
    )
"""
CONVENTION = "GFLOP counts matrix products alone, 2 operations a multiply-add"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def run(verb, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"sft_jax.{verb}", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def printed(verb, *arguments):
    done = run(verb, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cost_states_models_and_layers(config, tmp_path):
    out = printed("cost", f"--config={config}", "--compare=fixed,mbt", f"--json={tmp_path / 'c'}")
    assert CONVENTION in out
    assert "Layers of fixed:" in out
    assert "| encoder_a/block_0 " in out
    found = json.loads((tmp_path / "c").read_text())
    assert list(found) == ["fixed", "mbt"]
    own = variant(load(config), "mbt")
    assert found["mbt"]["parameters"] == num_parameters(own)
    assert found["mbt"]["layers"] == [vars(layer) for layer in layer_costs(own)]


@pytest.mark.parametrize("own_processes", corners([False, True], False))
def test_benchmark_times_models_and_writes_numbers_figure_and_trace(
    config, tmp_path, own_processes
):
    out = printed(
        "benchmark",
        f"--config={config}",
        "--compare=sft,dense",
        "--repeats=2",
        "--window=2",
        *(["--process_memory"] if own_processes else []),
        f"--json={tmp_path / 'found.json'}",
        f"--plot={tmp_path / 'figure.png'}",
        f"--profile={tmp_path / 'trace'}",
    )
    assert CONVENTION in out
    assert "| model | parameters | train samples/s |" in out
    assert "Median, lowest and highest of 2 rounds of 2 steps" in " ".join(out.split())
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["batch_size"], found["dtype"], found["rounds"]) == (8, "float32", 2)
    assert found["matmul_peak_flops_per_second"] > 0
    assert list(found["models"]) == ["sft", "dense"]
    for name, entry in found["models"].items():
        for kind in ("train", "infer"):
            rate = entry[kind]["samples_per_second"]
            assert 0 < rate["low"] <= rate["median"] <= rate["high"]
            assert entry[kind]["compile_seconds"] > 0
            assert entry[kind]["temporary_bytes"] > 0
            assert 0 < entry[kind]["share_of_peak"] < 1
        assert entry["parameters"] == num_parameters(variant(load(config), name))
        if own_processes:
            assert 1e7 < entry["process_peak_bytes"] < found["process_peak_bytes"] * 10
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width == round(9.6 * 120)
    assert list((tmp_path / "trace").rglob("perfetto_trace.json.gz"))


@pytest.mark.slow
def test_benchmark_sweeps(config, tmp_path):
    out = printed(
        "benchmark",
        f"--config={config}",
        "--sweep=length",
        "--values=16,32",
        "--compare=sft,dense",
        "--repeats=1",
        "--window=1",
        f"--json={tmp_path / 'found.json'}",
        f"--plot={tmp_path / 'figure.png'}",
    )
    assert "Exponent of length with which a cost grows" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(point["length"], point["model"]) for point in found["sweep"]] == [
        (16, "sft"),
        (16, "dense"),
        (32, "sft"),
        (32, "dense"),
    ]
    assert all(point["train"]["samples_per_second"]["median"] > 0 for point in found["sweep"])
    assert set(found["exponents"]) == {"sft", "dense"}
    assert set(found["exponents"]["sft"]["train"]) == {"time", "temporary"}
    assert (tmp_path / "figure.png").is_file()


@pytest.mark.parametrize("verb", ["cost", "benchmark"])
def test_modalities_left_to_the_data_are_an_error_without_a_traceback(verb):
    done = run(verb, f"--config={ROOT / 'configs' / 'arrays.py'}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ConfigError: modalities: given none")
    assert "Traceback" not in done.stderr
