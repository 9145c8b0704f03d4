"""Images: those that were generated, and those of users, refused or made into a clean PNG."""
