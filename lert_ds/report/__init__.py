"""Runs and benchmarks as one HTML page."""
