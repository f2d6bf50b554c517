"""The code of README and docs/ runs as it stands there."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from doc_pages import PAGES, ROOT, blocks_of, is_apart

from sft_jax import api
from sft_jax.config.modality import POOLS, ModalitySpec, PoolKind
from sft_jax.config.run import Config, ModelConfig
from sft_jax.models import pools, registry

OWN_DATA = ROOT / "docs" / "own_data.md"
README = ROOT / "README.md"


def python_of(page):
    return [
        block.text
        for block in blocks_of(page)
        if block.language == "python" and not is_apart(block)
    ]


WITH_CODE = [page for page in PAGES if page not in (OWN_DATA, README) and python_of(page)]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_python_runs(page, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    names = {}
    for text in python_of(page):
        exec(compile(text, page.name, "exec"), names)


def test_the_example_of_the_readme_runs_at_toy_size(tmp_path, monkeypatch, one_device):
    (text,) = python_of(README)
    assert len([line for line in text.splitlines() if line.strip()]) <= 12
    load_config = api.load_config
    small = {"model.embed_dim": 8, "model.num_heads": 2, "train.batch_size": 40}
    small |= {"model.num_post_layers": 1, "data.data_dir": "prepared"}
    monkeypatch.setattr(
        api, "load_config", lambda path, changes: load_config(path, {**changes, **small})
    )
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(text.replace("600", "60"), README.name, "exec"), names)
    assert names["scores"]["num_samples"] == 12
    assert names["page"] == tmp_path / "runs" / "mine" / "report.html"
    assert names["prediction"].probabilities.shape == (60, 3)


@pytest.fixture
def shell(tmp_path):
    """Runs a command where the pages assume one to stand, with a home of its own."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_own_data(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build, train, predict = blocks_of(OWN_DATA)[:3]
    languages = build.language, train.language, predict.language
    assert languages == ("python", "bash", "python")
    assert len([line for line in build.text.splitlines() if line.strip()]) <= 10
    names = {}
    exec(build.text, names)
    printed = shell("bash", "-euc", train.text)
    assert "finished at step 12" in printed
    assert "600 samples" in printed
    assert (tmp_path / "predictions.npz").is_file()
    exec(predict.text, names)
    assert names["prediction"].probabilities.shape == (600, 3)


def test_masks_of_the_page_are_read(tmp_path, monkeypatch):
    from sft_jax.data.arrays import read_arrays

    monkeypatch.chdir(tmp_path)
    exec(python_of(ROOT / "docs" / "masks.md")[0], {})
    table = read_arrays("gaps.npz", require_label=True)
    assert table[3]["mask"]["picture"].sum() == 0
    assert table[2]["mask"]["picture"].sum() == 7
    assert table[0]["mask"]["sound"].sum() == 16


def test_a_new_pool_works_once_it_stands_in_the_tables(monkeypatch):
    names = {}
    exec(python_of(ROOT / "docs" / "add_pool.md")[0], names)
    monkeypatch.setitem(pools.POOL_FUNCTIONS, "peak_topk", names["peak_topk"])
    monkeypatch.setitem(POOLS, "peak_topk", PoolKind("k"))
    spec = ModalitySpec(name="m", length=5, feature_dim=2, pool="peak_topk", k=3)
    config = ModelConfig(num_classes=2, embed_dim=4, num_heads=2, num_post_layers=1)
    model = registry.build(Config(modalities=(spec,), model=config))
    inputs, mask = {"m": jnp.ones((2, 5, 2))}, {"m": jnp.ones((2, 5), bool)}
    output, _ = jax.jit(model.init_with_output)(jax.random.key(0), inputs, mask)
    assert output.pooled["m"].indices.shape == (2, 3)
