"""From stored images to batches: sources (`NAME:PATH`), parts, decoding, face detection, crops, and the
loader, which skips what `decode` cannot read.
May import synthetic and core.
"""
