"""What one leading CPU worker does for the whole system, again and again."""
