"""
What tests of Hopper share: a clock that is moved by hand, real stores on temporary files, and errors on
demand.

Nothing here imitates: a fake is the real thing on temporary storage, with a way to make it fail. It imports
no service and no test framework.
"""
