"""Scores from arrays, with bootstrap intervals: accuracy, landmarks (`nme`, with its normalisers), parsing,
verification, fairness, regions, collapse.
May import core.
"""
