"""The service as a retriever of other libraries: LangChain, LlamaIndex, Haystack."""
