# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios: small text programs that question a kernel, and the answers."""
