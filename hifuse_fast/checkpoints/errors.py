"""The error of all files of weights."""


class CheckpointError(ValueError):
    """A file that is no usable HiFuse checkpoint or frozen network; the message says why."""
