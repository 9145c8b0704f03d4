"""Embed prompts, queries and pictures, and embed them anew when the model changes."""
