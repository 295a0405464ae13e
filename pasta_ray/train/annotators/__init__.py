"""Annotators turn a plain answer into a document: they choose the bodies and name them."""
