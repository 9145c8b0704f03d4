"""Search by meaning over what the tenant has made."""
