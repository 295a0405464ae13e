"""PASTA-Ray: language models that say which parts of an answer are independent, and an engine that decodes them at once."""

__version__ = "0.1.0"
