"""The models that jobs can name."""
