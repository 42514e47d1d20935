"""Every image and caption encoded once, on disk."""
