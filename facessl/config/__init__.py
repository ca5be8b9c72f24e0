"""Configurations of both kinds of run: dataclasses, whose docstrings are the help texts of the flags (`run` has those
that both share), recipes (YAML), and `parse`, which turns flags and recipes into a configuration.
May import views and core; plug-ins by name.
"""
