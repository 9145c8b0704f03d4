"""What a key may use and has used: quotas, request rates, back-pressure."""
