"""Benchmarks of single ops and of the CPU engines against their peers, and the generator of the pages' tables."""
