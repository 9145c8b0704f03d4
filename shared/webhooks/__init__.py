"""Webhooks: events, the outbox that is written with each transition, signatures, payloads."""
