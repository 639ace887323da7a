"""A seeded world of several Hoppers in one thread: a virtual clock, a bad network, crashes at every step."""
