"""Batches over HTTP: take in a file of prompts whole, watch it, steer it, fetch what came of it."""
