"""Core, transport and waiting put together: reading, the handle, single operations."""
