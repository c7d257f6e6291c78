"""What MongoProfileBackend says to MongoDB, evaluated here: mongomock lacks some of it, and mistakes more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from multidb.profiles.documents import matcher, sort_key
from multidb.profiles.protocol import Condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_MISSING: Final = object()
_TYPES: Final = {
    bool: "bool",
    int: "long",
    float: "double",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
    object: "missing",
}
_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$eq": lambda one, other: one == other,
    "$gt": lambda one, other: one > other,
    "$lt": lambda one, other: one < other,
}


def matches(filter_: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Return whether *document* fulfils a filter."""
    return all(_fulfils(key, wanted, document) for key, wanted in filter_.items())


def _fulfils(key: str, wanted: Any, document: Mapping[str, Any]) -> bool:
    if key in {"$and", "$or", "$nor"}:
        among = all if key == "$and" else any
        return among(matches(each, document) for each in wanted) is (key != "$nor")
    if key == "$expr":
        return bool(evaluate(wanted, document))
    if not isinstance(wanted, dict):
        wanted = {"$eq": wanted}
    return all(_holds(key, operator, operand, document) for operator, operand in wanted.items())


def _holds(path: str, operator: str, operand: Any, document: Mapping[str, Any]) -> bool:
    if operator == "$not":
        return not matches({path: operand}, document)
    value = _value_at(document, path.split("."))
    if operator == "$type":
        return _TYPES[type(value)] in ([operand] if isinstance(operand, str) else operand)
    if isinstance(operand, dict):  # What a document sorts by.
        return _COMPARISONS[operator](tuple(value.values()), tuple(operand.values()))
    condition: Any = Condition(path, operator.removeprefix("$"), operand)  # type: ignore[arg-type]
    return matcher([condition])(dict(document))


def _value_at(value: Any, parts: list[str]) -> Any:
    for depth, part in enumerate(parts):
        if isinstance(value, list):
            below = [_value_at(item, parts[depth:]) for item in value if isinstance(item, dict)]
            return [item for item in below if item is not _MISSING]
        value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
    return value


def evaluate(expression: Any, document: Any, **variables: Any) -> Any:
    """Return the value of an aggregation expression."""

    def value_of(part: Any) -> Any:
        return evaluate(part, document, **variables)

    if isinstance(expression, str) and expression.startswith("$"):
        return _value_at_field(expression, document, variables)
    if isinstance(expression, list):
        return [value_of(item) for item in expression]
    if not isinstance(expression, dict):
        return expression
    for operator, operand in expression.items():
        if operator in _LAZY:
            return _LAZY[operator](operand, document, variables)
        if operator in _OPERATORS:
            return _OPERATORS[operator](value_of(operand))
    values = {name: value_of(item) for name, item in expression.items()}
    return {name: value for name, value in values.items() if value is not _MISSING}


def _value_at_field(field: str, document: Any, variables: Mapping[str, Any]) -> Any:
    if field.startswith("$$"):
        name, *parts = field[2:].split(".")
        return _value_at(variables[name], parts)
    return _value_at(document, field[1:].split("."))


def _if_null(values: list[Any]) -> Any:
    return next((value for value in values if value is not _MISSING and value is not None), values[-1])


def _merge(values: list[Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for value in values:
        merged |= value if isinstance(value, dict) else {}
    return merged


_OPERATORS: Final[dict[str, Callable[[Any], Any]]] = {
    "$add": sum,
    "$and": all,
    "$anyElementTrue": lambda values: any(values[0]),
    "$cond": lambda values: values[1] if values[0] else values[2],
    "$eq": lambda values: sort_key(values[0]) == sort_key(values[1]),
    "$gte": lambda values: values[0] >= values[1],
    "$ifNull": _if_null,
    "$in": lambda values: values[0] in values[1],
    "$indexOfBytes": lambda values: values[0].find(values[1]),
    "$mergeObjects": _merge,
    "$objectToArray": lambda value: [{"k": key, "v": item} for key, item in value.items()],
    "$type": lambda value: _TYPES[type(value)],
}
_LAZY: Final[dict[str, Callable[[Any, Any, dict[str, Any]], Any]]] = {
    "$literal": lambda operand, _, __: operand,
    "$map": lambda operand, document, variables: [
        evaluate(operand["in"], document, **variables, **{operand["as"]: item})
        for item in evaluate(operand["input"], document, **variables)
    ],
    "$switch": lambda operand, document, variables: next(
        (
            evaluate(branch["then"], document, **variables)
            for branch in operand["branches"]
            if evaluate(branch["case"], document, **variables)
        ),
        evaluate(operand["default"], document, **variables),
    ),
}


def run(pipeline: Iterable[Mapping[str, Any]], documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what comes out of an aggregation pipeline."""
    found = list(documents)
    for stage in pipeline:
        ((name, operand),) = stage.items()
        found = _STAGES[name](found, operand)
    return found


def _set(found: list[dict[str, Any]], fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    for document in found:
        for path, expression in fields.items():
            parent, _, name = path.rpartition(".")
            inside = document.setdefault(parent, {}) if parent else document
            inside[name] = evaluate(expression, document)
    return found


def _sort(found: list[dict[str, Any]], order: Mapping[str, int]) -> list[dict[str, Any]]:
    def key_at(document: dict[str, Any], path: str) -> Any:
        value = _value_at(document, path.split("."))
        return tuple(value.values()) if isinstance(value, dict) else value

    for path, direction in reversed(list(order.items())):
        found.sort(key=lambda document, path=path: key_at(document, path), reverse=direction < 0)  # type: ignore[misc]
    return found


def _unset(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    for document in found:
        document.pop(name, None)
    return found


def _group(found: list[dict[str, Any]], fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups: dict[Any, dict[str, Any]] = {}
    sums = {name: accumulator["$sum"] for name, accumulator in fields.items() if name != "_id"}
    for document in found:
        key = evaluate(fields["_id"], document)
        group = groups.setdefault(key, {"_id": key} | dict.fromkeys(sums, 0))
        for name, expression in sums.items():
            group[name] += evaluate(expression, document)
    return list(groups.values())


_STAGES: Final[dict[str, Callable[[list[dict[str, Any]], Any], list[dict[str, Any]]]]] = {
    "$group": _group,
    "$limit": lambda found, number: found[:number],
    "$match": lambda found, filter_: [document for document in found if matches(filter_, document)],
    "$replaceWith": lambda found, expression: [evaluate(expression, document) for document in found],
    "$set": _set,
    "$sort": _sort,
    "$unset": _unset,
}
