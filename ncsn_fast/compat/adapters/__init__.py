"""Networks and operators of other libraries, each told to this engine in one line."""
