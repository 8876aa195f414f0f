"""The rule that turns a network's outputs into a mask: which map, and where it is cut.

::

    Rule()                                     # the paper's: recombined map, adaptive threshold
    Rule.parse("fixed:0.2", map="signed")      # plain CAM, cut at a fifth of its maximum
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from wgap.errors import RuleError

__all__ = ["MAPS", "Kind", "Map", "Rule"]

Map = Literal["recombined", "positive", "signed"]
MAPS: tuple[Map, ...] = get_args(Map)
"""``recombined`` sums |w_c| F_c (Eq. 3), ``positive`` max(w_c, 0) F_c, ``signed`` w_c F_c, min-max normalised."""

Kind = Literal["adaptive", "fixed"]


@dataclass(frozen=True)
class Rule:
    """Which map is made, and where it is cut. Judged by the native library, once, when it is made.

    Attributes:
        kind: ``adaptive`` (the two-stage rule of Sec. 4.3) or ``fixed``.
        map: ``recombined``, ``positive`` or ``signed``.
        eta: the threshold of a fixed rule, in [0, 0.999]; None for other kinds.

    Raises:
        RuleError: the kind or the map is unknown, or ``eta`` is not as above.
    """

    kind: Kind = "adaptive"
    map: Map = "recombined"
    eta: float | None = None

    def __post_init__(self) -> None:
        kind, _ = _parsed(str(self), self.map)
        if kind != self.kind:
            raise RuleError(f"kind: expected 'adaptive' or 'fixed', got {self.kind!r}; Rule.parse reads a rule's text")

    def __str__(self) -> str:
        """As on the command line: ``adaptive``, ``fixed:0.2``."""
        return self.kind if self.eta is None else f"{self.kind}:{float(self.eta)!r}"

    @staticmethod
    def parse(text: str, map: str = "recombined") -> Rule:  # noqa: A002  (the method's word for it)
        """``adaptive`` or ``fixed:ETA`` of the map of that name.

        Raises:
            RuleError: see :class:`Rule`.
        """
        kind, eta = _parsed(text, map)
        return Rule(cast("Kind", kind), cast("Map", map), eta)

    def to_json(self) -> dict[str, Any]:
        """``kind``, ``map``, and ``eta`` where the kind has one."""
        return {"kind": self.kind, "map": self.map, **({} if self.eta is None else {"eta": self.eta})}

    @staticmethod
    def from_json(value: object) -> Rule:
        """What :meth:`to_json` gives.

        Raises:
            RuleError: it is not an object of these fields, or names no rule.
        """
        fields = {"kind": (str,), "map": (str,), "eta": (int, float)}
        if (
            not isinstance(value, dict)
            or not {"kind", "map"} <= value.keys() <= fields.keys()
            or not all(type(value[key]) in fields[key] for key in value)
        ):
            raise RuleError(f'rule: expected {{"kind", "map"}} and, of a fixed one, "eta", got {value!r}')
        try:
            return Rule(**value)
        except OverflowError as error:
            raise RuleError("eta: expected a threshold in [0, 0.999], got a far larger number") from error


def _parsed(text: object, map: object) -> tuple[str, float | None]:  # noqa: A002
    """Kind and ETA, judged by the native library, which reads up to a NUL and quotes the first 64 bytes."""
    from wgap import _native

    given = (str(value) for value in (text, map))
    return _native.parse_rule(
        *(value if value.isascii() and value.isprintable() else ascii(value)[1:-1] for value in given)
    )
