"""Training rows from texts, queries and identifiers."""
