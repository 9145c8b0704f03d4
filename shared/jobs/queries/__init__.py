"""The only SQL that changes jobs: pure builders, executed by the async and the sync side alike."""
