"""From stored images to batches: sources (`NAME:PATH`), parts, decoding, crop geometry, face detection, and the loader,
which skips what `decode` cannot read.
May import synthetic and core.
"""
