"""`python -m hopper_cli` is `hopper`."""

import sys

from hopper_cli.main import main

sys.exit(main())
