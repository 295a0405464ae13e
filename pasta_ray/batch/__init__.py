"""Answers to files of prompts, by many engines at once: the offline side of serving."""
