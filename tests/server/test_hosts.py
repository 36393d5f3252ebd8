"""The application under other ASGI servers, and on trio (server 16)."""
