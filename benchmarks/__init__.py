"""Time, memory and error of the losses next to other implementations: ``python -m benchmarks --help``."""

import os

# Before anything loads torch: threads that spin while they wait spoil each other's timings on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
