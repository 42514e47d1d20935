"""One training loop for every kind of model."""
