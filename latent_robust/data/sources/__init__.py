"""Sources of images and pairs: folders, tables, tar shards, the Hub, built-in datasets.

A source lists names and reads stored images. What is done with bad images is decided in one place,
`images.py` and `pairs.py`, for all sources.
"""
