"""The parts of ``python -m benchmarks``, and training throughput; CUDA devices are welcome where it says so."""
