"""
What tests of Hopper share: a clock that is moved by hand, real stores on temporary files, errors on demand;
processes that are killed, callers that write down what they are told, and a checker of what they wrote.

Nothing here imitates: a fake is the real thing on temporary storage, with a way to make it fail. It imports
no service and no test framework.
"""
