"""The LightningModules, and what their checkpoints hold."""
