"""What the Triton kernels take of GPUs that need not be there: compiled ahead of time, or counted."""
