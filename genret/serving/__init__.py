"""Retrieval endpoints over a finished run."""
