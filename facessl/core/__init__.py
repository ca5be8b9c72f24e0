"""What every package uses: errors, plug-ins by file name, the types that flow between stages, launching and ranks,
work in blocks, checkpoints, safe reading and writing (`files`), locks, progress, checks of values.
May import nothing of facessl.
"""
