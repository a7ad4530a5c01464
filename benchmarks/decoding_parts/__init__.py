"""The parts of the decoding benchmark, one module each, and what they share."""
