"""`make container-test`: deploy/compose.yaml in containers, where there is an engine."""
