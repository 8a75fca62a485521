"""The Hopper kernels without a GPU: a simulated multiprocessor, Gluon on it, and panels to compute."""
