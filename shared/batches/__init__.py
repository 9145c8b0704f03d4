"""Batches: up to 50,000 jobs that are accepted whole, fed fairly and counted by the ledger."""
