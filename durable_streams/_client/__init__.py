"""Core, transport and waiting put together: reading, the handle, single operations."""

import logging

# Our loggers are silent unless asked: without a handler of the user's, warnings would go to standard error.
logging.getLogger("durable_streams").addHandler(logging.NullHandler())
