"""Whether the service lives and can work, and where its parts are."""
