"""The command ``ctloss``: training, evaluation, a benchmark, which path runs, and what an installation has."""
