"""One file per source (`folder.py` is `folder:PATH`); files with an underscore are what several of them share.
A source is a class with the members of `data.source.Source`, found by the name of its file.
May import data, synthetic and core.
"""
