# SPDX-License-Identifier: GPL-2.0-only
"""Predict what this machine would do, and look whether it does."""
