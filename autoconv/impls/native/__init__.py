"""C generated for one spec, compiled by the system's compiler when tuned, loaded afterwards."""
