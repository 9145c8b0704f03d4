"""Deliver webhooks: find what is due, try it, record the outcome."""
