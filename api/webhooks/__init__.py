"""Webhook endpoints, their secrets, and the log of deliveries."""
