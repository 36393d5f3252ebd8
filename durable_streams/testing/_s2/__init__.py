"""The parts of `S2Fake`. What a program may use stands in `durable_streams.testing`.

- `answers`: what the server says no with
- `configs`: configurations of basins and streams
- `stream`, `store`: a stream's records, tail, conditions and followers; basins and their streams
- `reads`: read parameters, and batches out of a stream
- `faults`: what goes wrong on purpose
- `exchange`, `http1`, `http2`: one request and its answer, and what carries them
- `call`, `routes`: a request on its way to its answer, and which call it is
- `body_writers`, `append_session`, `read_sessions`: s2s and SSE
- `fake`: the server: listener, connections, `S2Fake`
"""
