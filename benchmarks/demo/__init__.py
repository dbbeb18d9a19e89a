"""`make demo`: a real task with patients, offline, from outlines to a report. docs/demo.md tells of it."""
