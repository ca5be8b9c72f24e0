"""Jobs on whole folders (`crop` photos, `pack` a source, with `options`, `jobs`, `ranks`, `shards` and `phash`), and
`plan`, the cost of a recipe.
May import training, pretrained, config, data and core.
"""
