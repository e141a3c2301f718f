"""A smaller model made of a larger one: some of its layers, and narrower feed-forward blocks."""
