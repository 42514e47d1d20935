"""Low-rank adapters: which layers get them, and their files."""
