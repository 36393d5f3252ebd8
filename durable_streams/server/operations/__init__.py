"""What an operator does with a store: look into it, check it, copy it, take a stream out and put one in.

Plain functions that read the store's file themselves, so they work while a server has it open, except for
`import_stream`, which writes. They wait for the disk: in an async program call them in a worker thread.
"""
