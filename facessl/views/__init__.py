"""What a network sees of an image: views as data, geometric parts in the worker, photometric parts on the device,
augmentation with labels, normalization.
May import data and core.
"""
