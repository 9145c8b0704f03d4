"""The queues as the ledger has them, over all tenants: for the operator."""
