"""One file per face detector: photos to boxes, scores and five points; the class is named like the file.
May import core.
"""
