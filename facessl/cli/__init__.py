"""The command line: `main` and one module per group of commands, each thin.
May import everything. Nothing imports it but `python -m facessl` and the installed command.
"""

from facessl.cli.main import main as main
