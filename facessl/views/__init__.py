"""Views of an image: as data, geometric parts in the worker, photometric parts on the device,
augmentation with labels, normalization.
May import data and core.
"""
