"""Benchmarks: ratios inside one run. Run by hand, never by a timed test."""
