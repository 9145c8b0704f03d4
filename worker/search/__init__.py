"""Embed prompts, queries and images, and re-embed them when the model changes."""
