"""Using a trained network: embeddings and their files, search (`neighbors`), groups, predictions on photos, export,
pictures of regions.
May import tasks, pretrained, methods, models, config, views, data and core.
"""
