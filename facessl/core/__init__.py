"""What every package uses: errors, plug-ins by file name, the types that flow between stages, distributed ranks,
checkpoints and other files (`files`), locks, checks of values.
May import nothing of facessl.
"""
