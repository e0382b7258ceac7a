"""Drawing of events: what a pull looks like in a notebook, a terminal and a log. No logic of its own."""
