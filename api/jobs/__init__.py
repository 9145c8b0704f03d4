"""Jobs: submit, poll, list, cancel, retry, follow."""
