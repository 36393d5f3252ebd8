"""Subscriptions: durable cursors over many streams, that wake a worker when there is something new (server 15).

`model` is the state machine of one subscription, without I/O. `service` owns all of them: it keeps them in a `ledger`,
listens to changes of streams, and has wakes delivered. `routes` is the HTTP side. The rest has one noun each.
"""
