"""Measurements of the engine on a CUDA device, for a machine without a network."""
