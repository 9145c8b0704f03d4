"""Reliability trials: real servers, real processes, real faults, and a checker that trusts none."""
