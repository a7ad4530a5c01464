"""Measures, confidence intervals and the report."""
