"""Model card template and one card per published checkpoint."""
