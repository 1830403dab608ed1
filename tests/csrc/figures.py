# SPDX-License-Identifier: GPL-2.0-only
"""What machines are compared by: C must leave what Python leaves."""


def everything(m):
    """Return a machine's state and all that it counts."""
    return (
        m.digest(),
        m.events(),
        m.work(),
        m.vmstat(),
        m.hugepages(),
        m.refusals(),
        m.refused_mappings(),
        m.processes(),
        m.tlb(),
        m.memory(),
    )
