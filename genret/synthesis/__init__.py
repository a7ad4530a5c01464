"""Synthetic queries for passages."""
