"""Other people's APIs in front of our jobs; none has a job path of its own."""
