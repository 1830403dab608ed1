# SPDX-License-Identifier: GPL-2.0-only
"""Results in, tables out; the cost model."""
