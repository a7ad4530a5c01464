"""The parts of the synthesis benchmark."""
