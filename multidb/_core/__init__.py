"""What every store needs and that would read the same for all of them."""
