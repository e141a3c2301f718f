"""Prompts come in and a training set goes out."""
