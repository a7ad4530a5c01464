"""genret: a search engine that generates document identifiers instead of scanning an index."""

__version__ = "0.1.0"
