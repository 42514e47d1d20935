"""Limits that several packages share."""

# Share of files that cannot be used, above which a run stops.
MAX_BAD_FRACTION = 0.05
