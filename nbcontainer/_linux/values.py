"""Frozen values for processes that are forked anew for every container.

What `dataclasses` imports (`inspect`, `ast`, `dis`, `tokenize`) is 1.6 MB of private memory. The launcher would hand it
to each container's processes, and the kernel copies, and later takes down, the page tables of all of it: on the way
from a request to its command, among others. So these few modules have their values from here.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, TypeVar

    from typing_extensions import dataclass_transform

    _Value = TypeVar("_Value")

    @dataclass_transform(frozen_default=True)
    def value(kind: type[_Value]) -> type[_Value]:
        """Make a class of annotated fields a frozen value."""
        return kind

else:

    def value(kind: type[Any]) -> type[Any]:
        """Make a class of annotated fields a frozen value: `__init__`, `==` and `repr` by field, nothing else."""
        names = tuple(kind.__annotations__)
        defaults = {f"_{name}": kind.__dict__[name] for name in names if name in kind.__dict__}
        parameters = [f"{name}=_{name}" if f"_{name}" in defaults else name for name in names]
        taken = ", ".join(f"{name}={name}" for name in names)
        made = {}
        exec(  # noqa: S102 - the text is made of a class's own field names, as dataclasses does it
            f"def __init__({', '.join(['self', *parameters])}):\n    self.__dict__.update({taken})\n", defaults, made
        )
        kind.__init__ = made["__init__"]
        kind.__eq__ = _equal
        kind.__hash__ = None
        kind.__repr__ = _shown
        kind.__setattr__ = kind.__delattr__ = _refuse
        kind.__match_args__ = names
        return kind

    def _equal(self: Any, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(self) is type(other) else NotImplemented

    def _shown(self: Any) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def _refuse(self: Any, name: str, *_: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")


def fields_of(kind: type[Any]) -> dict[str, str]:
    """The fields of a value's class, in order, with their types as written."""
    return dict(kind.__annotations__)


def replaced(old: _Value, **changes: Any) -> _Value:
    """The same value with these fields changed."""
    return type(old)(**{**old.__dict__, **changes})
