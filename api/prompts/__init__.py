"""Recommendations of prompts."""
