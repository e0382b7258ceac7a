"""How a pull is drawn."""
