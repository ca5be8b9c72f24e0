"""Using a trained network: embeddings, predictions on photos, pictures of regions.
May import tasks, pretrained, models, config, views, data and core.
"""
