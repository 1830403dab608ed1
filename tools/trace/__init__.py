# SPDX-License-Identifier: GPL-2.0-only
"""Traces of real programs: the file format, recording, reading."""
