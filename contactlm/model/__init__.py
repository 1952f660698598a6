"""ESM2, LoRA and the contact logits."""
