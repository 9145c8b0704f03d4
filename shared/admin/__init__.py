"""For operators: drains of workers, and what waits over all tenants."""
