# SPDX-License-Identifier: GPL-2.0-only
"""Traces from what other tools wrote: one module for each format, ``run`` for all."""
