"""What every package uses: errors, plug-ins by file name, the types that flow between stages, ranks, precision,
safe files, and what a run ran on.
May import nothing of facessl.
"""
