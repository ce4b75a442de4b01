"""How the tests are compiled: as quickly as XLA can.  Most of their time goes there."""

import jaxlib

# Later ones have these emitters alone, and refuse the flag.
OLDER_EMITTERS = tuple(map(int, jaxlib.__version__.split(".")[:2])) < (0, 11)

QUICKLY = " ".join(  # for XLA_FLAGS
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # without fused multiply-adds, the same sum is the same in every program
        "--xla_cpu_max_isa=SSE4_2",
        *(["--xla_cpu_use_fusion_emitters=false"] if OLDER_EMITTERS else []),
    )
)
WELL = {  # options of `jax.jit`, for what runs longer than it compiles
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    **({"xla_cpu_use_fusion_emitters": True} if OLDER_EMITTERS else {}),
}
