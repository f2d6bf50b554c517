"""Cost of a model: predicted from its program, planned for other devices, and measured here.

`variant` makes models of comparable size from one configuration. The module `plan_tables` compiles
training steps for devices that are not there, which `topology` names; `measure` times compiled
models on this machine, and `benchmarks` makes tables of that.
"""

from sft_jax.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "flops": "CONVENTION",
        "model_costs": "forward_gflop num_parameters train_gflop",
        "plan": "plan_model",
        "throughput": "matmul_peak memory_bandwidth one_device_a_core",
        "variants": "VARIANTS variant",
    },
    submodules="benchmarks measure plan_tables topology",
)
