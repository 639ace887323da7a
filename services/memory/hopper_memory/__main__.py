"""`python -m hopper_memory`: memory as a process of its own."""

import sys

from hopper_common.host import main
from hopper_memory.app import SERVICE

sys.exit(main(SERVICE))
