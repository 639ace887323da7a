"""
Where other Hoppers might be: multicast DNS on this network, SRV records of a domain, and what the owner wrote down.

Everything found is a hint: unverified, bounded, and never a reason to trust, rename or redial anybody. What a hint is
good for is an address to pair with; who answers there is proved by pairing, and nothing else.
"""
