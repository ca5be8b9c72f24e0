"""Evaluating a trained network on labeled images: cached features, protocols for frozen backbones, scores of tasks and
of regions.
May import inference, tasks, models, metrics, views, data and core.
"""
