"""Changes that are shown and not kept yet: while git writes them, because the journal does not.

A call's records go to a volatile part of the journal and are applied so that they can be taken
back; the call then waits in `kept` until a commit holds them. If git does not take them either,
all that is not kept is undone at once, the youngest first: what came later may rest on what came
earlier. So either the call returns and git has it, or it fails and nothing of it is there.
"""

from __future__ import annotations

from ..errors import FSError
from ..tree import Before, Node


class Change:
    """One call's change. *position* is where the journal ends behind it: a commit from there on holds it.
    *refused* is the errno of the journal's refusal; until *deadline* (trio's clock) its caller may wait."""

    __slots__ = ("anchors", "befores", "deadline", "error", "is_decided", "position", "refused")

    def __init__(
        self,
        position: int,
        befores: list[Before],
        anchors: list[tuple[Node, int]],
        deadline: float,
        refused: int,
    ) -> None:
        self.position = position
        self.befores = befores
        self.anchors = anchors
        self.deadline = deadline
        self.refused = refused
        self.is_decided = False
        self.error: FSError | None = None

    def decide(self, error: FSError | None) -> None:
        """It is kept, or taken back because of *error*."""
        self.is_decided = True
        self.error = error
