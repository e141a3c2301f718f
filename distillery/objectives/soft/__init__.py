"""The stage that stores the teacher's probabilities along the released responses."""
