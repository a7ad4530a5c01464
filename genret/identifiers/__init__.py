"""Identifiers (docids) of passages, unique in the corpus."""
