"""Other libraries' names for what autoconv does: `autoconv.compat.theano`."""
