# SPDX-License-Identifier: GPL-2.0-only
"""The commands, and what several of them share: output, options, kernels."""
