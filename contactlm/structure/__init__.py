"""Structure files to chains, virtual C-beta atoms and contact labels."""
