"""The long fuzz: `python -m tests.fuzz`. The test run has a short one."""
