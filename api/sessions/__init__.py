"""Sessions and their history."""
