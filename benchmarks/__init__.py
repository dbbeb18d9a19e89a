"""Experiments: suites of cases, each against its peers. The instrument that runs them is `hifuse_fast.bench`."""
