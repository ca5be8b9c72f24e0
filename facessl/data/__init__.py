"""From stored images to batches: sources (`NAME:PATH`), parts, decoding, crops (`frame`), face detection, and the
loader, which skips what `decode` cannot read.
May import synthetic and core.
"""
