"""Faster ways to compute what the model computes; see `kernels_config.py` for their names."""
