"""Named tuples for the package's own data: for type-checkers `typing.NamedTuple`, and used as such.

That compiles the source of a function for each class, and one of an expression for each field, at
every import: a quarter of what importing ybsmart would take. What users get is `typing`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NamedTuple as LeanNamedTuple
else:
    from operator import itemgetter

    class _LeanNamedTupleType(type):
        def __new__(mcls, name, bases, members):
            fields = tuple(members.get("__annotations__", ()))
            members["_fields"] = fields
            members["_defaults"] = {field: members[field] for field in fields if field in members}
            members["__slots__"] = ()
            members |= {field: property(itemgetter(i)) for i, field in enumerate(fields)}
            return super().__new__(mcls, name, bases, members)

    class LeanNamedTuple(tuple, metaclass=_LeanNamedTupleType):
        """A tuple whose items have the names, and perhaps the defaults, that the class says."""

        def __new__(cls, *values, **named):
            fields = cls._fields
            for field in fields[len(values) :]:
                if field in named:
                    values += (named.pop(field),)
                elif field in cls._defaults:
                    values += (cls._defaults[field],)
                else:
                    break
            if named or len(values) != len(fields):
                raise TypeError(f"bug: {cls.__name__} takes {', '.join(fields)}")
            return tuple.__new__(cls, values)

        def __getnewargs__(self):
            return tuple(self)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **named):
            return type(self)(**{**self._asdict(), **named})

        def __repr__(self):
            items = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({items})"


__all__ = ["LeanNamedTuple"]
