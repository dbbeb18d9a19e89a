"""Tools over the ops: calls of the network, floors, the kernel report, the tuner. Nothing in the package imports it."""
