"""A run folder as a page, a table and a JSON file, and measured scores beside published ones.
May import metrics, config, data and core.
"""
