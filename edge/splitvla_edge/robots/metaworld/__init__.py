"""A simulated tabletop for the edge: Meta-World's Sawyer arm with tasks that an instruction names (extra `sim`)."""
