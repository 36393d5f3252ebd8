"""What an S2 server has to do, as checks that run against any: `S2Fake`, and `s2 lite` (specification: S2 2, 3, 4).

`probe` speaks HTTP without any of the client's code, `checks_*` hold the checks, one coroutine each, named for what it
checks. Each gets a `Bench` with a basin and a stream of its own.
"""
