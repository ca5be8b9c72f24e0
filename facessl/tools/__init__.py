"""Whole-folder jobs and arithmetic beside the runs: crop photos, pack a source, plan the cost of a recipe.
May import training and everything below it.
"""
