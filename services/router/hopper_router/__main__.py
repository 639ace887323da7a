"""`python -m hopper_router`: the router as a process of its own."""

import sys

from hopper_common.host import main
from hopper_router.app import SERVICE

if __name__ == "__main__":
    sys.exit(main(SERVICE))
