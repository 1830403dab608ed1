# SPDX-License-Identifier: GPL-2.0-only
"""Programs of memory calls, made up by hypothesis: the machine does what the model says, step by step."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from . import calls, invariants
from .driver import Driver


class Program(RuleBasedStateMachine):
    """One machine; each rule makes one call on it and on the model."""

    config = None
    knobs = ()

    @initialize(first=calls.fill)
    def boot(self, first):
        self.driver = Driver(self.config, self.knobs)
        self.driver.step(*first)

    def room(self):
        return len(self.driver.spaces) < 4

    @rule(step=calls.mappings)
    def map(self, step):
        self.driver.step(*step)

    @rule(step=calls.mappings)
    def remap(self, step):
        self.driver.step(*step)

    @rule(step=calls.accesses)
    def access(self, step):
        self.driver.step(*step)

    @rule(step=calls.accesses)
    def access_again(self, step):
        self.driver.step(*step)

    @precondition(room)
    @rule(step=st.one_of(calls.fork, calls.fork, st.just(("spawn",))))
    def start(self, step):
        self.driver.step(*step)

    @precondition(lambda self: len(self.driver.spaces) > 1)
    @rule(step=st.one_of(calls.call("exit", calls.who), calls.call("exec", calls.who)))
    def end(self, step):
        self.driver.step(*step)

    @rule(what=calls.failure, occasion=calls.occasions, step=calls.needs_memory)
    def fail(self, what, occasion, step):
        if step[0] != "fork" or self.room():
            self.driver.arm(what, occasion)
            self.driver.step(*step)

    @invariant()
    def everything_holds(self):
        invariants.check(self.driver.k)

    def teardown(self):
        if hasattr(self, "driver"):
            self.driver.read_all()
            invariants.check(self.driver.k)
            invariants.check_all_free(self.driver)
            self.driver.close()


FLAVOURS = [
    ("arm64-anonfolio-4k", "y", ()),
    ("arm64-anonfolio-4k", "n", ("enabled=always",)),
    ("arm64-anonfolio-16k", "y", ("enabled=always",)),
    ("arm64-anonfolio-64k", "y", ("enabled=always",)),
    ("arm64-baseline-4k", "y", ()),
    ("x86-baseline-4k", "n", ()),
    ("x86-baseline-4k", "y", ()),
]
STEPS = 50


@pytest.mark.parametrize(
    ("kernel", "c_ranges", "knobs"), FLAVOURS, ids=[f"{k}-{c}" for k, c, _ in FLAVOURS]
)
def test_programs(configure, kernel, c_ranges, knobs):
    flavour = type("Flavour", (Program,), {})
    flavour.config, flavour.knobs = configure(kernel, f"C_RANGES={c_ranges}"), knobs
    examples = settings().max_examples
    if "64k" in kernel:
        examples //= 3  # its page tables have 8192 entries, and each step walks them all
    run_state_machine_as_test(
        flavour, settings=settings(stateful_step_count=STEPS, max_examples=examples)
    )
