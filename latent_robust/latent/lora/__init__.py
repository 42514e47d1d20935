"""Low-rank adapters (LoRA): adding them, their files, and the check of these files."""
