"""The one command for a bare CUDA machine, ``bash benchmarks/gpu.sh``, its parts, and the ring of GPUs that is planned."""
