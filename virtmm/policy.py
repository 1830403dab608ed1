# SPDX-License-Identifier: GPL-2.0-only
"""A user's policy: a Python file that says which order a fault gets (Documentation/policies.md)."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtmm.mm.policy import TVA_FALLBACK, TVA_PAGEFAULT, PolicyError, describe, user_ladder

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtmm.mm.policy import Ladder

__all__ = ["TVA_FALLBACK", "TVA_PAGEFAULT", "Policy", "PolicyError", "load_policy"]

_FUNCTION = "thp_get_order"
_ARGUMENTS = "vma, address, tva_type, orders"


@dataclass(frozen=True)
class Policy:
    """
    A file with thp_get_order(vma, address, tva_type, orders).

    Attributes:
        path: where it was.
        text: what was in it.
        hash: of that.
    """

    path: Path
    text: str
    hash: str

    def ladder(self) -> Ladder:
        """Run the file and return the ladder that asks it; each machine has globals of its own."""
        return user_ladder(self.function(), self.path.name)

    def function(self) -> Callable[[Any, int, int, int], object]:
        """
        Run the file and return its thp_get_order.

        Raises:
            PolicyError: it is not Python, fails, or has no such function of four arguments.
        """
        names: dict[str, Any] = {"__name__": self.path.stem, "__file__": str(self.path)}
        try:
            exec(compile(self.text, str(self.path), "exec"), names)  # noqa: S102 - that is its use
        except SyntaxError as e:
            raise PolicyError(f"{self.path}:{e.lineno}: not Python: {e.msg}") from None
        except (Exception, SystemExit) as e:
            raise PolicyError(f"{self.path}: {describe(e)}") from e
        function = names.get(_FUNCTION)
        if not callable(function):
            raise PolicyError(f"{self.path}: no function {_FUNCTION}({_ARGUMENTS}); define it")
        try:
            inspect.signature(function).bind(None, 0, 0, 0)
        except (TypeError, ValueError):
            raise PolicyError(
                f"{self.path}: {_FUNCTION} does not take ({_ARGUMENTS}); give it these four"
            ) from None
        return function  # type: ignore[no-any-return]


def load_policy(path: Path) -> Policy:
    """Read and try a policy file; PolicyError when it cannot be read, or see Policy.function()."""
    try:
        data = path.read_bytes()
        text = data.decode()
    except OSError as e:
        raise PolicyError(f"{path}: {e.strerror}; name a Python file") from None
    except ValueError:
        raise PolicyError(f"{path}: not Python: no UTF-8 text") from None
    policy = Policy(path, text, hashlib.sha256(data).hexdigest())
    policy.function()
    return policy
