"""HTTP/2 for S2's sessions: the client side of RFC 9113, as small as those need it.

frames.py       bytes <-> frames, for either side; no I/O
flow.py         windows and the allowance for frames that cost their sender nothing; no I/O
connection.py   one connection as a client sees it; no I/O
wire.py         a TCP socket, with or without TLS, and how to get one
driver.py       connection + wire on anyio: streams that can be awaited
pool.py         connections by origin: reuse, limits, retirement
"""
