"""What the API counts for Prometheus, beside what it shares with the workers."""
