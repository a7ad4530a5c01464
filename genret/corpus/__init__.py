"""Reading corpora and cutting them into passages."""
