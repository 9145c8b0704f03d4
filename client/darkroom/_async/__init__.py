"""The client, written once: `make_sync` derives `darkroom._sync` from this package."""
