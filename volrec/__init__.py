"""volrec."""
