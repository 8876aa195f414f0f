"""The rule that turns a network's outputs into a mask: of which map, and where it is cut.

::

    Rule()                                     # the paper's: recombined map, adaptive threshold
    Rule.parse("fixed:0.2", map="signed")      # plain CAM, cut at a fifth of its maximum
    Rule("foreground+colour")                  # where the network's score map is above 0, and colours agree
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from wgap.errors import RuleError

__all__ = ["MAPS", "Kind", "Map", "Rule"]

Map = Literal["recombined", "positive", "signed", "none"]
MAPS: tuple[Map, ...] = get_args(Map)[:-1]
"""``recombined`` sums |w_c| F_c (Eq. 3), ``positive`` max(w_c, 0) F_c, ``signed`` w_c F_c, min-max normalised."""

Kind = Literal["adaptive", "fixed", "foreground", "foreground+colour"]


@dataclass(frozen=True)
class Rule:
    """How the mask is made. Judged by the native library, once, when it is made.

    Attributes:
        kind: ``adaptive`` (the two-stage rule of Sec. 4.3) or ``fixed``, of a class's map; ``foreground`` or
            ``foreground+colour``, of the network's output ``foreground`` (docs/foreground.md).
        map: ``recombined``, ``positive`` or ``signed``. Of a foreground rule: the map whose sum decides which component
            is the first box, or ``none``, where that is the heaviest and no features are read. None takes the kind's
            own: ``recombined``, or ``none``.
        eta: the threshold of a fixed rule, in [0, 0.999]; None for other kinds.

    Raises:
        RuleError: the kind or the map is unknown, or ``eta`` is not as above.
    """

    kind: Kind = "adaptive"
    map: Map = None  # type: ignore[assignment]  # a Map once it is made
    eta: float | None = None

    def __post_init__(self) -> None:
        kind, map_, _ = _parsed(str(self), self.map)
        if kind != self.kind:
            kinds = ", ".join(map(repr, get_args(Kind)))
            raise RuleError(f"kind: expected one of {kinds}, got {self.kind!r}; Rule.parse reads a rule's text")
        object.__setattr__(self, "map", map_)

    def __str__(self) -> str:
        """As on the command line: ``adaptive``, ``fixed:0.2``."""
        return self.kind if self.eta is None else f"{self.kind}:{float(self.eta)!r}"

    @property
    def on_scores(self) -> bool:
        """Whether it reads the output ``foreground``."""
        return self.kind in ("foreground", "foreground+colour")

    @property
    def reads_picture(self) -> bool:
        """Whether it reads the network's input."""
        return self.kind == "foreground+colour"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Of the network's outputs, those that it reads."""
        return ("logits", *(["features"] if self.map != "none" else []), *(["foreground"] if self.on_scores else []))

    @staticmethod
    def parse(text: str, map: str | None = None) -> Rule:  # noqa: A002  (the method's word for it)
        """``adaptive``, ``fixed:ETA``, ``foreground`` or ``foreground+colour``, of the map of that name.

        Raises:
            RuleError: see :class:`Rule`.
        """
        kind, map_, eta = _parsed(text, map)
        return Rule(cast("Kind", kind), cast("Map", map_), eta)

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


def _parsed(text: object, map: object) -> tuple[str, str, float | None]:  # noqa: A002
    """Kind, map and ETA, judged by the native library, which reads up to a NUL and quotes the first 64 bytes."""
    from wgap import _native

    def shown(value: object) -> str:
        given = str(value)
        return given if given.isascii() and given.isprintable() else ascii(given)[1:-1]

    return _native.parse_rule(shown(text), None if map is None else shown(map))
