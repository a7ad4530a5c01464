"""Limits of the search that a plan counts with: apart from what searches, which takes torch."""

LARGEST_COPY = 2 << 30
"""Weights of more bytes together stay as they are: a second copy of them costs more than it gains."""
