"""`python -m hopper_federation`: the federation service as a process of its own."""

import sys

from hopper_common.host import main
from hopper_federation.app import SERVICE

if __name__ == "__main__":
    sys.exit(main(SERVICE))
