"""The models of a worker: which are loaded, which make room, and what is loaded next."""
