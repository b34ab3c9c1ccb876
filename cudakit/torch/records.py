"""Records of options as arguments of a PyTorch operator, one for each field, and back."""

from collections.abc import Iterator
from typing import Any, NamedTuple, get_type_hints

SCHEMAS: dict[Any, str] = {
    bool: "bool",
    float: "float",
    int: "SymInt",
    int | None: "SymInt?",
    str: "str",
    tuple[int, ...]: "SymInt[]",
    tuple[str, ...]: "str",  # `needs`, with commas between: ``torch.jit.trace`` knows no lists of strings
}


def flattened(options: Any) -> list[Any]:
    """Return the fields of a record, those of records within it included."""
    values: list[Any] = []
    for name, value in zip(options._fields, options, strict=True):
        if name == "needs":
            values.append(",".join(value))
        elif not isinstance(value, tuple):
            values.append(value)
        elif hasattr(value, "_fields"):
            values.extend(flattened(value))
        else:
            values.append(list(value))
    return values


class Record(NamedTuple):
    """The type of a record, with the types of its fields by their names, or records of those that are records."""

    kind: type
    fields: dict[str, Any]

    @classmethod
    def of(cls, record: type) -> "Record":
        """Read the annotations, which takes its time."""
        kinds = get_type_hints(record).items()
        return cls(record, {name: cls.of(kind) if hasattr(kind, "_fields") else kind for name, kind in kinds})

    def schemas(self) -> Iterator[tuple[str, str]]:
        """Yield the names and schemas of what `flattened` returns."""
        for name, kind in self.fields.items():
            if isinstance(kind, Record):
                yield from ((f"{name}_{inner}", schema) for inner, schema in kind.schemas())
            else:
                yield name, SCHEMAS[kind]

    def made(self, values: Iterator[Any]) -> Any:
        """Return the record that `flattened` took apart."""
        fields = []
        for kind in self.fields.values():
            if isinstance(kind, Record):
                fields.append(kind.made(values))
                continue
            value = next(values)
            if kind == tuple[str, ...]:
                value = value.split(",") if value else []
            fields.append(tuple(value) if isinstance(value, (list, tuple)) else value)
        return self.kind(*fields)
