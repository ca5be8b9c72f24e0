"""`python -m facessl`, for torchrun."""

import sys

from facessl.cli import main

sys.exit(main())
