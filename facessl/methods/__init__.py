"""One file per pre-training method, its hyper-parameters included; `base.py` says what a method is.
May import models, views and core.
"""
