"""The parts of a source of topics."""
