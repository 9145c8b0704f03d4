"""Finished pictures: look, read, make again, inspect."""
