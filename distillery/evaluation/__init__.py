"""Contestants answer, are timed and are compared."""
