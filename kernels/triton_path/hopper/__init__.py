"""Logits and weights for Hopper: one warp copies, two warpgroups multiply, and neither waits for the other's barriers.

Written in Gluon, Triton's language below Triton, because plain Triton cannot say which warp does what.
"""
