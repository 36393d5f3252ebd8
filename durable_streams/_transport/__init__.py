"""One HTTP exchange: the interface and its implementations. Each imports its HTTP library on first use."""
