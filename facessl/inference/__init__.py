"""Using a trained network: embeddings and their files, search (`neighbours`), groups, predictions on photos, export,
pictures of regions.
May import tasks, pretrained, methods, models, config, views, data and core.
"""
