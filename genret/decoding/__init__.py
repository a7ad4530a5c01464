"""Trie-constrained search; torch and numpy only."""
