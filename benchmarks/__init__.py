"""Sweeps against peers; what they measure is kept in ``results/`` and nowhere else."""
