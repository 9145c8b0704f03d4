"""Batches: up to 50,000 jobs that are accepted whole, enqueued fairly and counted by the
database."""
