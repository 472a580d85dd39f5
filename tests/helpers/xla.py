"""The one place for XLA's flags in tests. It is imported before jax, which reads the flags once.

XLA's default optimisation takes three times as long to compile and changes results by rounding only, so
tests do without it. `FLAX_WAVLM_TEST_XLA=default` gives the tests what users run: `.ci/run` checks parity
with PyTorch, the gradients and a whole run that way.
"""

import os

# The same operations, compiled with less care for their machine code.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def flags(devices: int) -> str:
    """The value of XLA_FLAGS for a process that sees this number of CPU devices."""
    count = f"--xla_force_host_platform_device_count={devices}"
    return count if os.environ.get("FLAX_WAVLM_TEST_XLA") == "default" else f"{count} {QUICK}"
