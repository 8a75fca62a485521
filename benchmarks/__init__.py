"""Time, memory and error of the losses beside the implementations in use elsewhere: ``python -m benchmarks --help``."""
