"""The bench harness: interleaved timing, the machine's limits, result rows, tables, pictures, and the network bench."""
