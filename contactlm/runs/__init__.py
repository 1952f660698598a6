"""What a run leaves behind: its directory, configuration, record and checkpoints."""
