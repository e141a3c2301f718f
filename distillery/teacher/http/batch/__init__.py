"""Batches: requests by the file, at half the price, answered within a day. One file per format."""
