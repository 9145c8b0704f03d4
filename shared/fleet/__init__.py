"""The workers: what each announces of itself, who is alive, and who is to rest."""
