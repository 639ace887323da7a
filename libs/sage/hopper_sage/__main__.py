"""`python -m hopper_sage`: the reference Sage as a process of its own."""

import sys

from hopper_common.host import main
from hopper_sage.app import SERVICE

sys.exit(main(SERVICE))
