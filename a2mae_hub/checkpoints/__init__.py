"""Checkpoints embedded in the wheel."""
