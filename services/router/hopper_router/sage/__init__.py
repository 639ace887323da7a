"""
Asking a Sage: the outside advisor of `hopper.sage.v1`, as values and a port, and the client that fills it.

It never decides: an answer is advice, one input of deciding among others. It never trusts a Sage: what is not on the
shortlist, no number from 0 to 1 or no order of the tasks asked about is no answer, words are made fit to be shown, and
a Sage that does not answer is left alone for a while. A router without a Sage needs none of it.
"""
