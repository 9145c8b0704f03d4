"""The parts of running one job: its claim, its lease, its progress, its encoded images."""
