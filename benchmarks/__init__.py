"""Measurements of cudakit beside its peers: ``python -m benchmarks.run``, or small ones with ``pytest benchmarks``."""
