"""Pictures that clients send to start from."""
