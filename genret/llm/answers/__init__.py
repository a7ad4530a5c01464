"""The parts of an answer of a language model; `genret.llm.parsing` puts them together."""
