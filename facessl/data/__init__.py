"""From stored images to batches: sources and their `NAME:PATH` syntax, parts and subsets, decoding, crop geometry,
face detection, order, loader, cache.
May import synthetic and core.
"""
