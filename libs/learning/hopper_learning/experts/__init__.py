"""
The experts: each scores every target for a text, on its own evidence.

They share rows (words), columns (targets; column 0 is "none of them") and nothing else; they never see each other's
scores: weighing them is the mixer's work.
"""
