"""
Asking a language model where a task goes: the question and its answer as values, what a day may cost, and the
clients of OpenAI-compatible and Anthropic endpoints.

It never decides: an answer is advice, one input of deciding among others. It never shows a model more projects than
the shortlist, never takes a task's text for instructions, and never lets a key into a log, an error or a policy.
Without the extra `llm` everything here imports; only `opening.open_advisor` then says what is missing.
"""
