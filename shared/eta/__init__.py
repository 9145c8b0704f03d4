"""When a job will be done: rates learnt from the ledger, the queue before it, and how far to trust
both (docs/scheduling.md)."""
