"""For operators: keys, usage and quotas, workers, queues, models."""
