"""What every slice of the API uses: authentication, errors, limits, serialization, health."""
