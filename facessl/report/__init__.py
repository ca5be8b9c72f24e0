"""A run folder as a page, a table and a JSON file, and measured scores beside published ones; a map of all faces.
May import evaluation, inference, tasks, metrics, config, data and core.
"""
