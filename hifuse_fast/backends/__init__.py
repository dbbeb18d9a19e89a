"""The run time of kernels: which backend serves a call, and what the kernels of each stand on. It imports no op."""
