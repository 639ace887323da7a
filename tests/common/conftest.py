"""What is collected here, and where."""

from hopper_testing.disks import may_mount

# Without the right to mount, a full disk is a file that may not grow: test_durability.py.
collect_ignore = [] if may_mount() else ["test_small_disk.py"]
