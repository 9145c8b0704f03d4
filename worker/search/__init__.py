"""Embed prompts, queries and images, and embed them anew when the model changes."""
