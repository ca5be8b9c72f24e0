"""Used by every package: errors, plug-ins by file name, types of samples and batches, launching and ranks, work in
blocks, checkpoints, safe reading and writing (`files`), locks, progress, checks of values.
May import nothing of facessl.
"""
