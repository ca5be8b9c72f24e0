"""Heads, decoders, losses, EMA, Sinkhorn, batch norm over ranks: parts that methods and tasks are built of.
May import core.
"""
