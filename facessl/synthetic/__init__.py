"""The procedural faces: persons, scenes and the renderer of pictures with landmarks and class maps.
`data.sources.synthetic` makes a source of them.
May import core.
"""
