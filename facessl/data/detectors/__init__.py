"""Face detectors, one file each: photos to boxes, scores and five points.

May import: torch, torchvision, cv2 and `facessl.core`.
"""
