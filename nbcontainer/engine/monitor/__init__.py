"""The monitor: a process of its own for each container that runs on behind.

It is what a notebook's kernel is to the containers of cells: it has the engine's own code carry them out, with a
launcher of its own. So such a container lives as long as its monitor, whatever becomes of the notebook that asked for
it. `nbcontainer.engine.monitor.process` says what else it does.
"""
