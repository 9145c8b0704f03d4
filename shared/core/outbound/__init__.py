"""Requests to URLs that users give, through the one guard against reaching inside."""
