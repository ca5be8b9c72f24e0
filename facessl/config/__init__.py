"""Configurations of both kinds of run: dataclasses, whose docstrings are the help of `pretrain` and `finetune` (`run`:
the flags that both share), recipes (YAML), and `parse`, which turns flags and recipes into a configuration.
May import views, data and core; plug-ins by name.
"""
