"""What workers count for Prometheus, beside what they share with the API."""
