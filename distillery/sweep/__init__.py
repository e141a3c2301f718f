"""Sweeps: many students of one teacher are tried, and the best recipe is found."""
