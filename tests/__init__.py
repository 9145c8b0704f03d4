"""The tests: what users see first, on the real servers."""
