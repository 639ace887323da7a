"""
Handing tasks to peers, and taking theirs: the protocol.

    model ── delegator, delegatee (one hand-over each, pure) ── desk (all of them, within one transaction)
                                                                  ▲ store, sender, receiver, errands: the shells

Owns what crosses between Hoppers. It never routes, and never executes: both are the router's.
"""
