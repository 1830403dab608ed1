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
from .flavours import FLAVOURS

STEPS = 50


def program(flavour, config, kinds):
    """Return a state machine: one machine of a flavour; each rule makes one call on it and the model."""

    class Program(RuleBasedStateMachine):
        @initialize(knobs=kinds.knobs, first=kinds.fill)
        def boot(self, knobs, first):
            self.driver = Driver(config, flavour.knobs, flavour.tight, flavour.policy)
            for knob in knobs:
                self.driver.step(*knob)
            self.driver.step(*first)

        def room(self):
            return len(self.driver.spaces) < 4

        @rule(step=kinds.mappings)
        def map(self, step):
            self.driver.step(*step)

        @rule(step=kinds.mappings)
        def remap(self, step):
            self.driver.step(*step)

        @rule(step=kinds.accesses)
        def access(self, step):
            self.driver.step(*step)

        @rule(step=kinds.accesses)
        def access_again(self, step):
            self.driver.step(*step)

        @precondition(room)
        @rule(step=st.one_of(kinds.fork, kinds.fork, st.just(("spawn",))))
        def start(self, step):
            self.driver.step(*step)

        @precondition(lambda self: len(self.driver.spaces) > 1)
        @rule(step=kinds.end)
        def end(self, step):
            self.driver.step(*step)

        @rule(what=calls.failure, occasion=calls.occasions, step=kinds.needs_memory)
        def fail(self, what, occasion, step):
            if step[0] != "fork" or self.room():
                self.driver.arm(what, occasion)
                self.driver.step(*step)

        @invariant()
        def everything_holds(self):
            invariants.check(self.driver.k, self.driver.most)

        def teardown(self):
            if hasattr(self, "driver"):
                try:
                    self.driver.read_all()
                    invariants.check(self.driver.k, self.driver.most)
                    invariants.check_all_free(self.driver)
                finally:
                    self.driver.close()

    return Program


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_programs(flavour):
    kinds = calls.MAINLINE if flavour.mthp else calls.SERIES
    examples = max(2, settings().max_examples * flavour.hypothesis // 30)
    run_state_machine_as_test(
        program(flavour, flavour.config(), kinds),
        settings=settings(stateful_step_count=STEPS, max_examples=examples),
    )
