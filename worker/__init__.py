"""Celery workers: claim jobs from the ledger, run them on the engine, commit the results."""
