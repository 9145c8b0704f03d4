"""What the API and the workers agree on: the database, the queue, storage, settings and errors."""
