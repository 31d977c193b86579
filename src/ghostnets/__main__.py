# SPDX-License-Identifier: Apache-2.0
"""``python -m ghostnets``, and so ``torchrun -m ghostnets``."""

from ghostnets.cli.app import main

main()
