"""Learning from what the student itself writes: rows with its samples, and what is kept."""
