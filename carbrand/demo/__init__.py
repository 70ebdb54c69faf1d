"""Sample photos drawn by the program, and the whole flow on them."""
