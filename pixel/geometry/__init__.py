"""Toy data whose exact distribution is known: what does each objective learn from dirty points?"""
