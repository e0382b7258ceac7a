"""The notebook door, in a real IPython shell with a recording engine behind it."""
