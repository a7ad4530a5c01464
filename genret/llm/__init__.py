"""Engines that write keywords and queries for passages."""
