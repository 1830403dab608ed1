# SPDX-License-Identifier: GPL-2.0-only
"""``python -m virtmm``: the command line, from the source root without installing anything."""

from virtmm.tools.cli import main

main(prog_name="virtmm")
