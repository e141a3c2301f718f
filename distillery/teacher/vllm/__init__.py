"""A vLLM server of the stage's own: its command, its life, and the teacher that asks it."""
