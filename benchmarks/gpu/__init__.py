"""The one command for a bare CUDA machine, ``bash benchmarks/gpu.sh``, its parts, and a model of a ring of GPUs."""
