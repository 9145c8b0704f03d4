"""Celery workers: claim jobs from the database, run them on the engine, commit the results."""
