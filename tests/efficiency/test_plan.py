import dataclasses
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, ModelConfig, TrainConfig
from sft_jax.efficiency import plan as planning
from sft_jax.efficiency import plan_tables, roofline
from sft_jax.efficiency.chips import CHIPS
from sft_jax.efficiency.hlo.hlo_cost import Collective, ProgramCost
from sft_jax.efficiency.model_costs import num_parameters, train_gflop
from sft_jax.efficiency.plan import default_batch, largest_batch, needed_bytes
from sft_jax.efficiency.topology import Topology, parse
from sft_jax.reports.text_tables import format_table
from sft_jax.types import ConfigError

SPEC = ModalitySpec(name="a", length=24, feature_dim=3, pool="max", window=8)


def tiny(**train):
    return Config(
        modalities=(SPEC,),
        model=ModelConfig(num_classes=4, embed_dim=8, num_heads=2, num_post_layers=2),
        train=TrainConfig(**{"batch_size": 8, **train}),
    )


def chip(**changes):
    """The CPU with round numbers: 1 TFLOP/s, 10 GB/s of memory, 1 GB/s of network."""
    peaks = {"float32": 1e12, "bfloat16": 2e12}
    data = {"flops": peaks, "memory": 10**9, "bandwidth": 1e10, "link_bandwidth": 1e9}
    return dataclasses.replace(CHIPS["cpu"], **{**data, **changes})


@pytest.fixture(scope="module")
def planned():
    return planning.plan(tiny(), Topology("cpu:1", chip(), (1,)))


def test_the_default_batch_is_shared_or_repeated():
    assert default_batch(tiny(), 4) == 8
    assert default_batch(tiny(), 3) == 24
    assert default_batch(tiny(accumulate=2), 8) == 64


def test_memory_is_that_of_the_state_the_batch_and_the_compiler(planned):
    config, memory = tiny(), planned.memory
    parameters = num_parameters(config)
    assert memory.parameters == 4 * parameters
    # Two moments and their step count, one scale, the state's step.
    assert 8 * parameters < memory.optimizer < 8 * parameters + 64
    # Features, mask, label, weight, id.
    assert memory.batch == 8 * (24 * 3 * 4 + 24 + 3 * 4)
    assert memory.temporary > 0
    assert memory.activations > 8 * 24 * 8 * 4
    # A CPU pads nothing; besides the state a step returns metrics and a pointer to each array.
    assert memory.padding % 4 == 0
    assert 0 < memory.padding < 1000
    parts = dataclasses.asdict(memory)
    del parts["activations"], parts["capacity"]
    assert memory.total == sum(parts.values())
    assert planned.fits is True


def test_products_are_those_of_the_forward_and_backward_pass(planned):
    assert planned.rows == 8
    assert planned.cost.flops / planned.rows == pytest.approx(train_gflop(tiny()) * 1e9, rel=0.15)
    assert planned.cost.unknown_loops == 0
    assert planned.cost.nbytes == planned.cost.main_bytes > planned.memory.total


def test_what_is_larger_than_the_memory_does_not_fit(planned):
    def with_capacity(capacity):
        memory = dataclasses.replace(planned.memory, capacity=capacity)
        return dataclasses.replace(planned, memory=memory)

    total = planned.memory.total
    assert [with_capacity(c).fits for c in (total, total - 1, 0)] == [True, False, None]
    assert dataclasses.replace(planned, cost=None).fits is False


MESSAGES = [
    (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (160.00G) exceeds available HBM (15.75G).",
        160 * 2**30,
    ),
    (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 16.50G of 15.75G hbm. Exceeded hbm capacity by 768.00M.",
        int(16.5 * 2**30),
    ),
]


@pytest.mark.parametrize(("message", "nbytes"), MESSAGES)
def test_what_a_compiler_needed_bytes_is_read_from_its_message(message, nbytes):
    assert needed_bytes(message) == nbytes


def test_a_compiler_that_gives_up_says_how_much_it_wanted(monkeypatch):
    message, nbytes = MESSAGES[0]
    state, batch, _ = planning._lower(tiny(), planning.make_mesh(tiny().train, jax.devices()[:1]))

    def compile(options):
        raise jax.errors.JaxRuntimeError(message)

    lowered = SimpleNamespace(compile=compile)
    monkeypatch.setattr(planning, "_lower", lambda *_: (state, batch, lowered))
    found = planning.plan(tiny(), Topology("cpu:1", chip(), (1,)))
    assert (found.fits, found.cost, found.memory.total) == (False, None, nbytes)
    models = {"sft": found}
    assert plan_tables.work_rows(models)[0]["MB a sample"] is None
    assert "bytes_per_sample" not in plan_tables.to_json({found.topology: models})["models"]["sft"]
    message = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        planning.plan(tiny(), Topology("cpu:1", chip(), (1,)))
    with pytest.raises(ValueError, match="expected the memory it needs"):
        needed_bytes(message)


def test_settings_that_the_data_would_decide_are_refused():
    with pytest.raises(ConfigError, match="no data is read here"):
        planning.plan(Config(), parse("cpu:1"))


COST = ProgramCost(
    flops=3 * 10**9,
    nbytes=10**8,
    main_bytes=5 * 10**7,
    collectives=(Collective("all-reduce", 2 * 10**6, 0, 1), Collective("all-reduce", 4, 4, 2)),
    unknown_loops=0,
)


def a_plan(size, total):
    memory = planning.Memory(0, 0, 0, 0, total, 0, 0, capacity=10_000)
    return planning.Plan(parse("cpu:1"), size, {}, memory, COST, "float32")


@pytest.mark.parametrize("unit", [1, 16])
@pytest.mark.parametrize("first", [16, 64, 1024])
@pytest.mark.parametrize("power", [1.0, 1.2])
def test_the_largest_batch_is_bracketed_in_few_compilations(unit, first, power):
    compiled = []

    def measure(size):
        assert size % unit == 0
        assert size not in compiled
        compiled.append(size)
        return a_plan(size, int(1000 + 10 * size**power))

    low, high = largest_batch(measure, measure(first), unit)
    exact = math.floor((9000 / 10) ** (1 / power))
    assert low <= exact < high
    assert high <= max(low * planning.SEARCH_RATIO, low + unit)
    assert len(compiled) <= 7


def test_no_batch_may_fit():
    assert largest_batch(lambda n: a_plan(n, 20_000 + n), a_plan(64, 20_064), 8) == (0, 8)


def test_least_times_by_hand():
    times = roofline.seconds(COST, chip(), "float32", num_chips=4)
    assert times == pytest.approx(
        {
            "products": 3e9 / 1e12,
            "memory": 5e7 / 1e10,
            # Reduced and spread, three quarters of the array each time.
            "network": 2 * 3 / 4 * (2e6 + 2 * 4) / 1e9,
        }
    )
    assert roofline.seconds(COST, chip(), "bfloat16", 4)["products"] == 3e9 / 2e12
    assert roofline.seconds(COST, CHIPS["cpu"], "float32", 4) == {}


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 1500),
        ("reduce-scatter", 750),
        ("all-gather", 750),
        ("all-to-all", 750),
        ("collective-permute", 1000),
    ],
)
def test_bytes_that_a_chip_sends(kind, sent):
    assert roofline.sent_bytes(Collective(kind, 1000, 4, 1), 16) == sent
    assert roofline.sent_bytes(Collective(kind, 1000, 1, 1), 16) in (0, 1000)


@pytest.mark.parametrize(
    ("kinds", "fsdp", "words"),
    [
        ((), 1, "none"),
        (("all-reduce",), 1, "reductions only"),
        (("all-reduce",), 4, "reductions only"),
        (
            ("all-reduce", "reduce-scatter", "all-gather"),
            4,
            "reductions and parameter gathers of fsdp 4",
        ),
        (("all-reduce", "all-gather"), 1, "not only reductions: all-gather, all-reduce"),
        (("all-to-all",), 4, "not only reductions: all-to-all"),
    ],
)
def test_communication_in_words(kinds, fsdp, words):
    assert roofline.describe([Collective(kind, 1, 2, 1) for kind in kinds], fsdp) == words


def test_collectives_add_up_by_kind():
    assert roofline.by_kind(COST.collectives) == {"all-reduce": {"count": 3, "bytes": 2000008}}


def test_tables_and_numbers_say_the_same(planned):
    four = Topology("cpu:4", chip(), (4,))
    found = dataclasses.replace(
        planned,
        topology=four,
        batch_size=32,
        mesh={"data": 4, "fsdp": 1},
        cost=COST,
        largest_batch=4096,
    )
    models = {"sft": found}
    (work,) = plan_tables.work_rows(models)
    assert work["GFLOP a step"] == pytest.approx(4 * 3)
    assert work["GFLOP a sample"] == pytest.approx(3 / 8)
    assert work["MB a sample"] == pytest.approx(100 / 8)
    assert work["of main memory"] == pytest.approx(50 / 8)
    assert work["bound by"] == "memory"
    assert work["samples/s at best"] == pytest.approx(32 / 5e-3)
    numbers = plan_tables.to_json({four: models})["models"]["sft"]
    assert numbers["bytes_per_sample"] == 10**8 / 8
    assert numbers["collective_bytes_per_chip"] == 2000008
    assert numbers["communication"] == "reductions only"
    assert numbers["largest_batch"] == 4096
    (row,) = plan_tables.overview_rows({four: models})
    assert (row["topology"], row["chips"], row["fits"]) == ("cpu:4", 4, "yes")
    assert row["MB a sample"] == work["MB a sample"]
    assert "topologies" in plan_tables.to_json({four: models, planned.topology: models})
    assert "4 devices; batch 32 (8 a chip), float32, data 4, fsdp 1" in plan_tables.heading(found)
    for table in (plan_tables.memory_rows, plan_tables.work_rows, plan_tables.collective_rows):
        assert len(format_table(table(models)).splitlines()) == 3


EIGHT = "--xla_force_host_platform_device_count=8"
CONFIG = """
from sft_jax.config.run import Config, ModelConfig, TrainConfig
from sft_jax.config.io import config_dict
from sft_jax.config.modality import ModalitySpec


def get_config():
    spec = ModalitySpec(name="a", length=24, feature_dim=3, pool="max", window=8)
    model = ModelConfig(num_classes=4, embed_dim=8, num_heads=2, num_post_layers=2)
    train = TrainConfig(batch_size=4)
    return config_dict(Config(modalities=(spec,), model=model, train=train))
"""


def test_the_verb_shows_what_a_chip_reduces_at_any_number_of_chips(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sft_jax.plan", f"--config={tmp_path / 'config.py'}"),
            *("--topology=cpu:2,cpu:8", f"--json={tmp_path / 'plan.json'}"),
        ],
        env={**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {EIGHT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:4] for line in done.stdout.splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["cpu:2", "2", "sft"],
        ["cpu:8", "8", "sft"],
    ]
    found = json.loads((tmp_path / "plan.json").read_text())["topologies"]
    few, many = (found[name]["models"]["sft"] for name in ("cpu:2", "cpu:8"))
    # Shared by two, repeated on eight.
    assert (few["batch_size"], many["batch_size"]) == (4, 32)
    for numbers in (few, many):
        assert numbers["communication"] == "reductions only"
        # The gradient, and the sum and the count of loss, top-1 and samples.
        assert numbers["collective_bytes_per_chip"] == 4 * num_parameters(tiny()) + 6 * 4
    assert many["bytes_per_sample"] < few["bytes_per_sample"]
