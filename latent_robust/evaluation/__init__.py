"""Measuring generated images, mostly against clean ones, and reporting the results."""
