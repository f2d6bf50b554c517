"""Options with which XLA compiles quickly.

Compiling takes most of the time of these tests, so what only makes the result faster is left out.
"""

import jax

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):
    # XLA dropped the choice while jax was at 0.11, and ends a process that asks for it.
    QUICK["xla_cpu_use_fusion_emitters"] = False
