"""The GPU host's side: split a checkpoint, serve its language model, verify the halves."""
