# SPDX-License-Identifier: GPL-2.0-only
"""Userland of the virtual kernel: record, replay, report, and the command line."""
