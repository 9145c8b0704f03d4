"""Keeping pictures and throwing them away."""
