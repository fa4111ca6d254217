"""Measurements: each module is a command, and `RESULTS.md` has what they found."""
