"""The algorithms of the compiled library's ops, by the name that the options of an op record."""

from __future__ import annotations

#: The name -> the number of `Algorithm` in csrc/arguments.h.
ALGORITHMS = {
    "direct": 0,
    "strassen": 1,
    "winograd2": 2,
    "winograd4": 3,
    "winograd4_at_call": 4,
    "depthwise": 5,
    "int8": 6,
    "int8_winograd2": 7,
}
