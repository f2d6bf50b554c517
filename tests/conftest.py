import gc
import os

import jax
import numpy as np
import pytest
from hypothesis import settings
from quick import QUICK

# Collectives and aliases of a quickly compiled program are the same. Programs are small, and
# splitting one for several threads to compile takes a sixth more of all processors' time.
FLAGS = " ".join(
    f"--{name}={value}"
    for name, value in {**QUICK, "xla_cpu_parallel_codegen_split_count": 1}.items()
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

# The modules that take longest, about in that order.
SLOW = (
    "test_models",
    "test_commands",
    "test_step",
    "test_remat",
    "test_cost",
    "test_resume",
    "test_recorded",
    "test_configurations",
    "test_fixed_attention",
    "test_tpu_attention",
    "test_predictor",
    "test_benchmark",
    "test_study_files",
    "test_several_processes",
    "test_notebooks",
    "test_doc_code",
)

# Fixtures of several rooms' tests.
pytest_plugins = ("data_fixtures", "report_fixtures", "run_fixtures")

# Compilation makes the first example slow and says nothing about the code under test.
settings.register_profile("sft_jax", deadline=None, max_examples=20)
settings.load_profile("sft_jax")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deals out whole modules, with the fixtures they share, in the order they come in.

    For `loadgroup`, too: xdist 3.8 puts the group into the name of a test, from where pytest 9.2
    no longer reads it, and modules fall apart (pytest-dev/pytest-xdist#1386).
    """
    if config.getvalue("dist") not in ("loadfile", "loadgroup"):
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items):
    """Modules that take long come first, so that none is left for one process alone."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


def pytest_collection_finish():
    """Spares the collector what lives to the end; tracing makes it look again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session):
    """Fails a run that skipped a test where `NO_SKIPS` says that all extras are installed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("NO_SKIPS") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def quick_flags():
    """Flags of XLA that compile quickly, for processes that a test starts."""
    return FLAGS


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
