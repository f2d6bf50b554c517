import os

import jax
import numpy as np
import pytest
from hypothesis import settings

# Compiling takes most of the time here, so what only makes the result faster is left out.
# Collectives and aliases of a compiled program are the same.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()

# Compilation makes the first example slow and says nothing about the code under test.
settings.register_profile("sft_jax", deadline=None, max_examples=20)
settings.load_profile("sft_jax")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """Keeps a module in one process, with its fixtures; only `spread` ones fill the gaps.

    Read by `pytest --dist=loadgroup`.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        if item.get_closest_marker("spread") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="module", autouse=True)
def _drop_programs():
    """No module needs the compiled programs of the one before it, which take gigabytes in all."""
    yield
    jax.clear_caches()


@pytest.fixture
def rng():
    """A generator that every test starts afresh."""
    return np.random.default_rng(0)


@pytest.fixture
def sample_keys():
    """Per-sample keys, `[b]`, as the train step makes them."""

    def make(count, seed=0):
        keys = jax.vmap(jax.random.fold_in, (None, 0))
        return keys(jax.random.key(seed), jax.numpy.arange(count))

    return make
