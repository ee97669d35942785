"""Conversion of checkpoints into and out of the A2-MAE format."""
