"""Synthetic faces: identities, scenes and the renderer of images with landmarks and class maps, for
`data.sources.synthetic`.
May import nothing of facessl.
"""
