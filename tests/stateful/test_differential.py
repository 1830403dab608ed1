# SPDX-License-Identifier: GPL-2.0-only
"""The same program with the loops in C and in Python: the same state after every call."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import calls
from .driver import Driver

processes = st.one_of(calls.fork, calls.call("exit", calls.who), calls.call("exec", calls.who))
programs = st.lists(
    st.one_of(
        st.tuples(st.none(), calls.mappings),
        st.tuples(st.none(), calls.accesses),
        st.tuples(st.none(), calls.accesses),
        st.tuples(st.none(), processes),
        st.tuples(st.tuples(calls.failure, calls.occasions), calls.needs_memory),
    ),
    min_size=5,
    max_size=40,
)

FLAVOURS = ("arm64-anonfolio-4k", "arm64-anonfolio-16k", "arm64-anonfolio-64k", "x86-baseline-4k")


@pytest.mark.parametrize("kernel", FLAVOURS)
def test_digests_are_the_same_after_every_call(configure, kernel):
    configs = [configure(kernel, f"C_RANGES={c_ranges}") for c_ranges in "yn"]
    examples = settings().max_examples // (3 if "64k" in kernel else 1)

    @settings(max_examples=examples)
    @given(program=programs)
    def run(program):
        pair = [Driver(config, ("enabled=always",)) for config in configs]
        try:
            for failure, call in [
                (None, ("mmap", 0, (0, 0, 192), 3, "private", True, False)),
                *program,
            ]:
                if call[0] == "fork" and len(pair[0].spaces) > 3:
                    continue
                for driver in pair:
                    if failure:
                        driver.arm(*failure)
                    driver.step(*call)
                c, python = (driver.m.digest() for driver in pair)
                assert c == python, f"after {call}"
                assert pair[0].m.events() == pair[1].m.events()
        finally:
            for driver in pair:
                driver.close()

    run()
