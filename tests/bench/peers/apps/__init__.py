"""The peers, each as its own documentation teaches; each runs in an environment of its own."""
