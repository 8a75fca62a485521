"""The parts of ``python -m benchmarks``, which also run on a CUDA device (``--device``), and training throughput."""
