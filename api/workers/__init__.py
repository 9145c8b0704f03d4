"""The fleet: who is alive, what it does, and who is to rest."""
