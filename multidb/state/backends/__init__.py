"""What keeps the states: one module for each kind of server, and one for none."""
