"""A cache on disk of encoded images and captions."""
