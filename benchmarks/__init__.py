"""Speed beside the peers': `python -m benchmarks`, or `make bench`.

Every contender is a program of its own that is told what to do by lines of JSON and measures itself: our client on
asyncio and on trio (`client.py`), the official TypeScript client (`ts_client.mjs`). They do the same work on the same
data and the same server, turn by turn, so that a busy moment of the machine hits all of them; medians are compared as
ratios, which carry over to other machines better than rates do.

A *row* is a function that yields `Case`s (`_harness.py`), named in `ROWS` (`__main__.py`). A peer that cannot run here
is left out with a sentence.
"""
