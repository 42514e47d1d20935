"""Audit pictures and captions as they are stored, before any training and without a model.

measures.py, jpeg.py and texts.py say what is measured of one picture, repeats.py what only shows in
many. checks.py has the thresholds. scan.py measures all pictures of a data set on all cores;
findings.py says what was found; page.py shows it.
"""
