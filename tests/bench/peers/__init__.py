"""Peers of Darkroom on the same work: `python -m tests.bench.peers`."""
