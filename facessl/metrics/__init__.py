"""Scores from arrays, with bootstrap intervals: accuracy, landmarks (`nme`, with its normalizers), parsing,
verification, fairness, regions, collapse.
May import core.
"""
