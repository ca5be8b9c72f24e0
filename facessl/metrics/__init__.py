"""Scores from arrays, each with its bootstrap interval: accuracy, landmarks, parsing, verification, fairness, regions,
collapse.
May import core.
"""
