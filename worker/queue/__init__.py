"""How messages are taken from Redis: which queues may be read now, and what is acknowledged."""
