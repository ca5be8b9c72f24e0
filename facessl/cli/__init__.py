"""The command line, thin: `main` (every command but two), `data` (the commands crop and pack), `commandline` (shared).
May import everything. Nothing imports it but `python -m facessl` and the installed command.
"""

from facessl.cli.main import main as main
