"""Tools over the ops: the calls of the network, their floors, the kernel report, the tuner. Nothing in the package imports it."""
