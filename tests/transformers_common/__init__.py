"""The library's own common model tests, run against the A2-MAE classes."""
