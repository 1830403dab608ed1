# SPDX-License-Identifier: GPL-2.0-only
"""Where programs make their calls: stretches of addresses, as (stretch, offset, count)."""

#: Pages in each stretch of addresses that programs use; a PMD boundary lies in the first, one of the
#: level above in the second, and the third, the heap, begins where nothing is aligned.
STRETCHES = (192, 64, 48)
#: One more begins half a PMD below a PMD boundary and holds two whole PMDs (one where they are large). Its
#: offsets and counts are pairs: 32nds of a PMD, and pages more.
HUGE = 3
#: Two PMDs, far from everything: nothing else needs the tables above them.
FAR = 4
HUGE_AGAIN = (
    *[(HUGE, (16, 0), (32, 0))] * 4,  # a whole PMD
    *[(HUGE, (48, 0), (32, 0))] * 2,  # the next
    *[(HUGE, (16, 0), (64, 0))] * 2,  # both
    (HUGE, (0, 0), (96, 0)),
    (HUGE, (24, 0), (16, 0)),  # part of one
    (HUGE, (32, 0), (32, 0)),  # across the boundary
    (HUGE, (16, 0), (4, 0)),
    (HUGE, (47, 0), (1, 0)),
    (HUGE, (16, 0), (0, 1)),
    (HUGE, (32, -1), (0, 2)),
    (HUGE, (16, 1), (1, 0)),
    (FAR, (0, 0), (32, 0)),
)
