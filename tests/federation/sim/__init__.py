"""A seeded world of several Hoppers in one thread: a virtual clock, a bad network, disks that lose what was not synced."""
