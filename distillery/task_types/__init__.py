"""One file per task type: what a row is, what an answer is, and how it is scored."""
