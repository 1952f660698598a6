"""ESM2, LoRA and the contact logits."""

import logging

# where bitsandbytes is installed, PEFT imports it, and on some CPUs it then asks for a package of kernels
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
