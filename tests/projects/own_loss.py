"""ContactModule with another loss.

Copy this file; then, in its folder, every command takes the class, and its options are flags::

    contactlm fit --config crop200 --model_class own_loss.FocalModule --model.gamma 1.5 --data.train_dir my/train
    contactlm test --model_class own_loss.FocalModule --ckpt_path runs/…/best-….ckpt --data.test_dir my/test

or, in Python, ``FocalModule("facebook/esm2_t6_8M_UR50D", gamma=1.5)``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from contactlm import ContactModule


class FocalModule(ContactModule):
    """Trains with the focal loss (Lin et al. 2017), which gives pairs that are predicted well already less weight.

    Args:
        gamma: How much less; 0 is the cross-entropy.
        options: Those of ContactModule.
    """

    def __init__(self, *args: Any, gamma: float = 2.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.save_hyperparameters({"gamma": gamma})  # travels with checkpoints
        self.gamma = gamma

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Mean over known pairs of (1 − p)^γ · (−log p), with p the probability given to the true label.

        Args:
            scores: float32 (B, L, L).
            labels: int8 (B, L, L): 1 contact, 0 none, −1 unknown.
        """
        known = labels >= 0
        entropy = binary_cross_entropy_with_logits(scores[known], labels[known].float(), reduction="none")
        return ((1 - (-entropy).exp()) ** self.gamma * entropy).mean()
