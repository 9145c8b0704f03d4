"""Redis carries the work; every key and queue is named in `shared.queue.names`."""
