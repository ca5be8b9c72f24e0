"""One file per published layout of weights: how it is recognized, and what its tensors are called here.
`base.py` is what they share.
May import methods, models, views and core.
"""
