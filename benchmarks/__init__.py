"""Benchmarks of single ops against their peers, and the generator of the pages' tables."""
