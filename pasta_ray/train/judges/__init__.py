"""Judges of answers: which of two is the better one, as a probability."""
