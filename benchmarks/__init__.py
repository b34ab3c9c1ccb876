"""Measurements of cudakit beside its peers: ``python -m cudakit bench``, or small ones with ``pytest benchmarks``."""
