"""Deliberate contamination of images and pairs, with a record of every change.

Experiments need dirty data whose clean version is available. Every random choice follows from the
seed, so the same dirty images can be made again. The manifest says which samples are dirty and how.
"""
