"""Configurations of the two kinds of run as frozen dataclasses, recipes (YAML), and the parser that turns flags and
recipes into a configuration.
May import views and core; plug-ins by name.
"""
