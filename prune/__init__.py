"""Pruning, recovery and export for the edge."""
