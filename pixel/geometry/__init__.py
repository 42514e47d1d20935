"""Toys whose truth is known exactly: what does each objective learn from dirty points?"""
