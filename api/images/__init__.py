"""Finished images, uploads and sessions: list, read, star, delete."""
