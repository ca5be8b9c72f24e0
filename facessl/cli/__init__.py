"""The command line, thin: `train`, `networks` (use a trained one), `data` (crop, pack), and `main`, which calls them.
May import everything. Nothing imports it but `python -m facessl` and the installed command.
"""

from facessl.cli.main import main as main
