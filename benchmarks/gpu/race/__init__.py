"""Races on a GPU: who takes part, what is changed in the kernels meanwhile, what the clock and the hardware count."""
