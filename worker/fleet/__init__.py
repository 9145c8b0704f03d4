"""A worker among others: its name, what it announces of itself, and how it is drained."""
