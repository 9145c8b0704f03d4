"""What every worker process is made of: its consumer, its name, its heartbeat, its metrics."""
