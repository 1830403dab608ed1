# SPDX-License-Identifier: GPL-2.0-only
"""Replay: a trace in, a result out."""
