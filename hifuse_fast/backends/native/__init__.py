"""The compiled library for CPUs: how it is loaded, the fakes of its ops, and calls of it that are made again."""
