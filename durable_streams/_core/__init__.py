"""The protocol as values: no I/O, no clock, no randomness, no await.

Drivers ask a session what to do (`next`), do it, and report what happened with one of the `on_...` methods.
"""
