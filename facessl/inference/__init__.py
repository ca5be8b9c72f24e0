"""Using a trained network: embeddings, predictions on photos, pictures of regions (`region_pictures`: regions.png).
May import tasks, pretrained, methods, models, metrics, config, views, data and core.
"""
