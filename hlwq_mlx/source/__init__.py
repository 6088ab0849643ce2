"""Checkpoints that others made: where they are, which layout they have, what their bits mean."""
