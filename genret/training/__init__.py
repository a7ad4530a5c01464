"""Training the generative retriever: SFT, mining of false positives, RPO."""
