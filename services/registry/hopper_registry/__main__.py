"""`python -m hopper_registry`: the registry as a process of its own."""

import sys

from hopper_common.host import main
from hopper_registry.app import SERVICE

if __name__ == "__main__":
    sys.exit(main(SERVICE))
