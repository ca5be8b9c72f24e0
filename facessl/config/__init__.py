"""Configurations of both kinds of run: dataclasses whose docstrings are the help of `pretrain` and `finetune` (shared
flags: `run`), recipes (YAML), and `parse` (flags and recipes -> configuration).
May import views, data and core; plug-ins by name.
"""
