"""The Python client of Darkroom."""
