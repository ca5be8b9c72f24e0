"""The command line, thin: `train`, `networks` and `embeddings` (use a trained one), `data` (crop, pack); `main` calls.
May import everything. Nothing imports it but `python -m facessl` and the installed command.
"""

from facessl.cli.main import main as main
