# SPDX-License-Identifier: GPL-2.0-only
"""The memory management of the virtual kernel, module by module as the kernel has it."""
