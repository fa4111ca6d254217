"""Run a command as ``python -m timm_accel``, also below ``torchrun -m`` and ``accelerate launch -m``."""

import sys

from timm_accel.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
