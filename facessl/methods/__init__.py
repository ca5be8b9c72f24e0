"""One file per pre-training method; `base.py` says what a method is.
A file with an underscore belongs to the method in its name.
May import models, views and core.
"""
