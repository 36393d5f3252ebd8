"""S2 from Python: client, sessions and patterns on asyncio and trio."""
