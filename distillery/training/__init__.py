"""Training: a student learns from a teacher's responses, and from its probabilities."""

from distillery.training.stage import train_student, training_stage

__all__ = ["train_student", "training_stage"]
