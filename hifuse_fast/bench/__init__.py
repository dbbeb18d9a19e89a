"""The instrument: timing in turns, the machine's limits, rows, tables, pictures, and the network bench."""
