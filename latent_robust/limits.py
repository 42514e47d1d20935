"""Limits that several packages share."""

# A run stops if more than this share of its files cannot be used.
MAX_BAD_FRACTION = 0.05
