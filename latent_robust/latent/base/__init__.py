"""A pretrained model: its family, its parts, and the files that it comes from."""
