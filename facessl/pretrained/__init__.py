"""From a path to a network: run folders, exports and the files of other authors, loaded or converted.
`families` has one file per published layout.
May import methods, models, config, views and core.
"""
