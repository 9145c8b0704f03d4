"""The thin producer: checks requests, writes jobs to the database, hands their ids to Redis."""
