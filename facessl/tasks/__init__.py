"""One file per downstream task; `base.py` says what a task and its meter are.
May import models, metrics, views, data and core.
"""
