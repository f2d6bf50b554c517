"""Table of accelerators that a run can be planned for, with the source of each number."""

import dataclasses
import textwrap

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip, that is, one JAX device.

    Attributes:
        platform: `tpu`, `gpu` or `cpu`.
        flops: Peak operations per second of matrix products, by the model's data type; empty if
            none is published.
        memory: Bytes that a program may use; 0 if there is no fixed limit.
        bandwidth: Peak bandwidth of that memory in bytes per second.
        link_bandwidth: One-way bandwidth to all neighbours together, in bytes per second.
        axes: Number of network axes of a TPU slice.
        cores: Cores per chip, which names such as `v4-128` count.
        chip_config: The TPU compiler's name of the chip's mode; `megacore` joins its two cores.
        host: GPUs per host.
        target: Further settings of the GPU compiler.
        device_name: Name of the device in the CUDA driver.
    """

    platform: str
    flops: dict[str, float] = dataclasses.field(hash=False)
    memory: int
    bandwidth: float
    link_bandwidth: float
    axes: int = 0
    cores: int = 1
    chip_config: str = "default"
    host: int = 0
    target: dict[str, int | float] = dataclasses.field(default_factory=dict, hash=False)
    device_name: str = ""


# A TPU multiplies in bfloat16 whatever the model's dtype, at JAX's default precision.
def _tpu(teraflops: float, **data) -> Chip:
    flops = {"bfloat16": teraflops * 1e12, "float32": teraflops * 1e12}
    return Chip(platform="tpu", flops=flops, **data)


# Settings of the CUDA compiler that all GPUs of compute capability 8.0 and 9.0 share: CUDA C++
# Programming Guide, table "Technical Specifications per Compute Capability".
_CUDA = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * 1024,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}

# TPU: https://cloud.google.com/tpu/docs/ v4, v5e, v5p, v6e (peak, HBM bandwidth; the inter-chip
# bandwidth stated there counts both ways, half of which is one way; v4 states 2400 Gbit/s one way).
# Memory is what the compiler (libtpu 0.0.42) says is available when a program is too large.
# GPU: NVIDIA H100 and A100 data sheets (SXM, 80 GB; dense products, float32 as TF32, which XLA
# takes by default; NVLink 900 and 600 GB/s both ways); caches, clocks and memory as the CUDA driver
# states them (also in openxla/xla, xla/backends/gpu/target_config/specs).
CHIPS = {
    "v4": _tpu(
        275.0,
        memory=int(30.75 * GIB),
        bandwidth=1200e9,
        link_bandwidth=300e9,
        axes=3,
        cores=2,
        chip_config="megacore",
    ),
    "v5e": _tpu(197.0, memory=int(15.75 * GIB), bandwidth=819e9, link_bandwidth=200e9, axes=2),
    "v5p": _tpu(
        459.0,
        memory=int(95.74 * GIB),
        bandwidth=2765e9,
        link_bandwidth=600e9,
        axes=3,
        cores=2,
        chip_config="megacore",
    ),
    "v6e": _tpu(918.0, memory=int(31.25 * GIB), bandwidth=1638e9, link_bandwidth=400e9, axes=2),
    "h100": Chip(
        platform="gpu",
        flops={"bfloat16": 989.4e12, "float32": 494.7e12},
        memory=84942979072,
        bandwidth=3352.32e9,
        link_bandwidth=450e9,
        host=8,
        target={
            "major": 9,
            "core_count": 132,
            "fpus_per_core": 128,
            "clock_rate_ghz": 1.98,
            "l2_cache_size": 50 * 2**20,
            "shared_memory_per_core": 228 * 1024,
            "shared_memory_per_block_optin": 227 * 1024,
        },
        device_name="NVIDIA H100 80GB HBM3",
    ),
    "a100": Chip(
        platform="gpu",
        flops={"bfloat16": 312e12, "float32": 156e12},
        memory=85100068864,
        bandwidth=2039.04e9,
        link_bandwidth=300e9,
        host=8,
        target={
            "major": 8,
            "core_count": 108,
            "fpus_per_core": 64,
            "clock_rate_ghz": 1.41,
            "l2_cache_size": 40 * 2**20,
            "shared_memory_per_core": 164 * 1024,
            "shared_memory_per_block_optin": 163 * 1024,
        },
        device_name="NVIDIA A100-SXM4-80GB",
    ),
    # Local devices; their rates are measured (`benchmark`), not published.
    "cpu": Chip(platform="cpu", flops={}, memory=0, bandwidth=0.0, link_bandwidth=0.0),
}


def target_config(chip: Chip) -> str:
    """Description of an absent GPU for the CUDA compiler, as a text proto."""
    target = dict(chip.target)
    major = target.pop("major")
    settings = {
        **_CUDA,
        **target,
        "memory_bandwidth": int(chip.bandwidth),
        "device_memory_size": chip.memory,
    }
    lines = "\n".join(f"  {key}: {value}" for key, value in settings.items())
    return (
        textwrap.dedent(f"""\
        gpu_device_info {{
        %s
          cuda_compute_capability {{ major: {major} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: 12 minor: 8 }}
        device_description_str: "{chip.device_name}"
        """)
        % lines
    )
