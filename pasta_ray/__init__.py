"""PASTA-Ray: models that mark the independent parts of their answers, and an engine that decodes those at once."""

__version__ = "0.1.0"
