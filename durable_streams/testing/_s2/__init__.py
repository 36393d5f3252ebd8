"""The parts of `S2Fake`. What a program may use stands in `durable_streams.testing`.

answers     what the server says no with
configs     configurations of basins and streams
store       basins, streams and records: appends, tails, subscriptions
reads       read parameters, and batches out of the store
faults      what goes wrong on purpose
exchange    one request and its answer, whatever carries them
http1       HTTP/1.1
http2       HTTP/2 in the clear
routes      which call a request is, and the unary ones
sessions    append and read sessions over s2s, and reads over SSE
fake        the server: listener, connections, `S2Fake`
"""
