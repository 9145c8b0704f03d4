"""The thin producer: checks requests, writes jobs to the ledger, hands their ids to Redis."""
