"""How far one Postgres, one Redis and one dispatcher carry: measured here, and a model beyond."""
