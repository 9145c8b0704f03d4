"""What the API and the workers agree on: the ledger, the queue, storage, settings and errors."""
