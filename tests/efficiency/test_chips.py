from importlib import metadata
from types import SimpleNamespace

import jax
import pytest
from jax.experimental import topologies

from sft_jax.efficiency import topology
from sft_jax.efficiency.chips import CHIPS, target_config
from sft_jax.efficiency.topology import check_compiler, devices, parse
from sft_jax.types import ConfigError


@pytest.mark.parametrize(
    ("name", "full", "chips"),
    [
        ("v5e:1", "v5e:1x1", 1),
        ("v5e:1x1", "v5e:1x1", 1),
        ("v5e:4x4", "v5e:4x4", 16),
        ("v5e:16x16", "v5e:16x16", 256),
        ("v5e:8", "v5e:2x4", 8),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v6e-256", "v6e:16x16", 256),
        # Rented names of these two count cores, of which a chip has two.
        ("v4-128", "v4:4x4x4", 64),
        ("v4-8", "v4:2x2x1", 4),
        ("v5p-256", "v5p:4x4x8", 128),
        ("v5p:2x2x2", "v5p:2x2x2", 8),
        ("v4:128", "v4:4x4x8", 128),
        ("h100:8", "h100:8", 8),
        ("a100:2", "a100:2", 2),
        ("H100:32", "h100:32", 32),
        ("cpu:1", "cpu:1", 1),
    ],
)
def test_names_of_topologies(name, full, chips):
    found = parse(name)
    assert (found.name, found.num_chips) == (full, chips)
    assert parse(found.name) == found


def test_a_topology_says_what_its_name_counts():
    assert str(parse("v4-128")) == "v4:4x4x4, 64 chips (v4-128, which counts cores)"
    assert str(parse("v5e:1")) == "v5e:1x1, 1 chip"
    assert str(parse("h100:16")) == "h100:16, 16 GPUs"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("v9:2", "such as v5e:4x4"),
        ("v5e", "such as v5e:4x4"),
        ("v5e:4x4x4", "expected 2 sizes"),
        ("v4:4x4", "expected 3 sizes"),
        ("h100:2x4", "expected a number"),
        ("h100:12", "multiple of 8"),
        ("v5e:12", "power of two"),
        ("v4-3", "power of two"),
        ("v5e:0x4", "at least 1"),
        ("cpu:0", "at least 1"),
    ],
)
def test_names_that_are_no_topology(name, match):
    with pytest.raises(ConfigError, match=match):
        parse(name)


@pytest.mark.parametrize(("platform", "count"), [("tpu", 4), ("gpu", 2), ("cpu", 1)])
def test_every_chip_has_what_its_platform_needs(platform, count):
    chips = [chip for chip in CHIPS.values() if chip.platform == platform]
    assert len(chips) == count
    for chip in chips if platform != "cpu" else ():
        assert set(chip.flops) == {"bfloat16", "float32"}
        assert chip.flops["bfloat16"] >= chip.flops["float32"] > 1e14
        # Operations for every byte of memory: between 100 and 1000 on all of them.
        assert 100 < chip.flops["bfloat16"] / chip.bandwidth < 1000
        assert chip.memory > 15e9
        assert 1e11 < chip.link_bandwidth < chip.bandwidth


@pytest.mark.parametrize(("name", "clock"), [("v4", 1.05e9), ("v5e", 1.5e9), ("v5p", 1.75e9)])
def test_peaks_are_those_of_the_matrix_units(name, clock):
    """Four units a core of 128 x 128 multiply-adds a cycle."""
    chip = CHIPS[name]
    assert chip.flops["bfloat16"] == pytest.approx(chip.cores * 4 * 2 * 128**2 * clock, rel=0.01)


@pytest.mark.parametrize(("name", "per_core"), [("h100", 4096), ("a100", 2048)])
def test_peaks_are_those_of_the_tensor_cores(name, per_core):
    """1,024 or 512 multiply-adds a cycle in each of a core's four; H100 at its boost of 1.83."""
    chip = CHIPS[name]
    clock = {"h100": 1.83e9, "a100": 1.41e9}[name]
    cores = chip.target["core_count"]
    assert chip.flops["bfloat16"] == pytest.approx(cores * per_core * clock, rel=0.01)


def test_the_cuda_compiler_is_told_of_the_gpu():
    text = target_config(CHIPS["a100"])
    assert text.count("{") == text.count("}") == 4
    assert "  cuda_compute_capability { major: 8 }\n" in text
    assert "  core_count: 108\n" in text
    assert f"  device_memory_size: {CHIPS['a100'].memory}\n" in text
    assert "  memory_bandwidth: 2039040000000\n" in text
    assert 'device_description_str: "NVIDIA A100-SXM4-80GB"' in text
    assert "major: 8 }" not in target_config(CHIPS["h100"])


@pytest.fixture
def compilers(monkeypatch):
    """Installed versions and what jax asks for, to be set; and what a compiler is asked for."""
    found = SimpleNamespace(installed={"jax": "0.10.2"}, asked=[])

    def version(package):
        if package not in found.installed:
            raise metadata.PackageNotFoundError(package)
        return found.installed[package]

    def describe(**arguments):
        found.asked.append(arguments)
        return SimpleNamespace(devices=jax.devices()[:1])

    requires = [
        "numpy>=2.0",
        'libtpu==0.0.42.*; extra == "tpu"',
        'jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda12"',
    ]
    monkeypatch.setattr(topology.metadata, "version", version)
    monkeypatch.setattr(topology.metadata, "requires", lambda package: requires)
    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    return found


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("v5e:1", "libtpu", "tpu"), ("h100:8", "jax-cuda12-plugin", "cuda")],
)
def test_a_compiler_that_is_not_there_or_does_not_pair(compilers, name, package, extra):
    planned = parse(name)
    with pytest.raises(ConfigError, match=rf"{package}.* not installed.*sft_jax\[{extra}\]"):
        devices(planned)
    compilers.installed[package] = "0.0.7"
    with pytest.raises(ConfigError, match=rf"found {package} 0\.0\.7, expected .*jax 0\.10\.2"):
        devices(planned)
    assert compilers.asked == []
    compilers.installed[package] = {"tpu": "0.0.42.1", "cuda": "0.10.2"}[extra]
    assert devices(planned) == jax.devices()[:1]
    assert len(compilers.asked) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5e:1", {"topology_name": "v5e:1x1", "chips_per_host_bounds": (1, 1, 1)}),
        ("v5e:4x4", {"topology_name": "v5e:4x4", "chips_per_host_bounds": (2, 2, 1)}),
        (
            "v4-128",
            {
                "topology_name": "v4:4x4x4",
                "chips_per_host_bounds": (2, 2, 1),
                "chip_config_name": "megacore",
            },
        ),
        ("h100:16", {"platform": "cuda", "topology": "1x2x8"}),
        ("a100:2", {"platform": "cuda", "topology": "1x1x2"}),
    ],
)
def test_what_a_compiler_is_asked_for(compilers, name, expected):
    compilers.installed |= {"libtpu": "0.0.42.1", "jax-cuda12-plugin": "0.10.2"}
    devices(parse(name))
    (asked,) = compilers.asked
    assert {key: asked[key] for key in expected} == expected


def test_a_jax_that_names_no_version_takes_any(compilers, monkeypatch):
    compilers.installed["libtpu"] = "1.0"
    monkeypatch.setattr(topology.metadata, "requires", lambda package: None)
    check_compiler("tpu")


def test_the_devices_at_hand_are_a_topology_too():
    assert devices(parse("cpu:1")) == jax.devices("cpu")[:1]
    with pytest.raises(ConfigError, match=r"expected at most \d+ devices; set XLA_FLAGS"):
        devices(parse("cpu:4096"))
