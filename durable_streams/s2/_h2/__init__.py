"""HTTP/2 for S2's sessions: the client side of RFC 9113, as small as those need it.

Without I/O: `frames` (bytes and frames, for either side), `flow` (windows, and an allowance for frames that cost their
sender nothing), `fields` (what is allowed in headers), `connection` (one connection as a client sees it) and `events`
(what it tells).

With: `wire` (a TCP socket, with or without TLS, and how to get one), `driver` (a connection on a wire), `duplex` (one
request and its answer, as something to await) and `pool` (connections by origin: reuse, limits, retirement).
"""
