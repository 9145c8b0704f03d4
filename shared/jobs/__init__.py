"""The job store: a job is a row, a transition is one conditional UPDATE."""
