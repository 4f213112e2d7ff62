"""Whole paths, on real engines."""
