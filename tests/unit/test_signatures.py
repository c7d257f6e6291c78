"""The module functions and the stores' methods are the same functions."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, get_overloads

import pytest

import multidb
from multidb import logs, profiles, state

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FunctionType, ModuleType

STORES = [(logs, logs.LogStore), (profiles, profiles.ProfileStore), (state, state.StateStore)]
both = pytest.mark.parametrize(("module", "store"), STORES, ids=lambda value: value.__name__)


def functions(module: ModuleType) -> dict[str, FunctionType]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }


def methods(store: type) -> dict[str, FunctionType]:
    return {
        name: value
        for name, value in vars(store).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


def shape(function: Callable[..., Any], *, method: bool) -> tuple[Any, ...]:
    """Return the parameters with their kinds, defaults and annotations, the return annotation, and whether it is awaited."""
    signature = inspect.signature(function)
    parameters = [(p.name, p.kind, p.default, p.annotation) for p in signature.parameters.values()]
    awaited = inspect.iscoroutinefunction(function)
    return parameters[1 if method else 0 :], signature.return_annotation, awaited


@both
def test_same_functions(module: ModuleType, store: type) -> None:
    """Every public method of a store has a module function, and the other way round."""
    assert sorted(methods(store)) == sorted(functions(module))
    assert set(functions(module)) <= set(module.__all__)


@both
def test_same_signatures(module: ModuleType, store: type) -> None:
    """They have the same parameters, kinds, defaults and annotations."""
    expected = {name: shape(method, method=True) for name, method in methods(store).items()}

    assert expected == {name: shape(function, method=False) for name, function in functions(module).items()}


@both
def test_same_overloads(module: ModuleType, store: type) -> None:
    """They have the same overloads for type checkers."""
    expected = {
        name: [shape(one, method=True) for one in get_overloads(method)]
        for name, method in methods(store).items()
    }

    assert expected == {
        name: [shape(one, method=False) for one in get_overloads(function)]
        for name, function in functions(module).items()
    }


@both
def test_no_catch_all(module: ModuleType, store: type) -> None:
    """No function takes arguments that its signature does not name, and all are annotated and documented."""
    for function in [*functions(module).values(), *methods(store).values()]:
        signature = inspect.signature(function)
        names = [p for p in signature.parameters.values() if p.name != "self"]

        assert all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in names), function
        assert all(p.annotation is not p.empty for p in names), function
        assert signature.return_annotation is not signature.empty, function
        assert function.__doc__, function


@both
def test_exports(module: ModuleType, store: type) -> None:
    """What a module says it exports is there, once."""
    assert store.__name__ in module.__all__
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert hasattr(module, name), name


def test_package() -> None:
    """The package exports every exception, and what starts and stops it."""
    exceptions = {name for name, value in vars(multidb.errors).items() if inspect.isclass(value)}

    assert exceptions == set(multidb.errors.__all__)
    assert exceptions | {
        "MultiDB",
        "Settings",
        "init_all",
        "close_all",
        "current",
        "using",
        "lifespan",
    } <= set(multidb.__all__)
    for name in multidb.__all__:
        assert hasattr(multidb, name), name


def test_errors() -> None:
    """The exceptions make up the tree that their module draws."""
    tree = {name: getattr(multidb, name).__mro__[1].__name__ for name in multidb.errors.__all__}

    assert {
        "MultiDBError": "Exception",
        "InvalidArgumentError": "MultiDBError",
        "InvalidValueError": "InvalidArgumentError",
        "NotInitializedError": "MultiDBError",
        "ClosedError": "MultiDBError",
        "ConfigurationError": "MultiDBError",
        "ConflictError": "MultiDBError",
        "BackendError": "MultiDBError",
        "BackendUnavailableError": "BackendError",
        "BackendTimeoutError": "BackendError",
        "OverloadedError": "BackendError",
    } == tree
    assert issubclass(multidb.InvalidArgumentError, ValueError)
    assert [False, True, True, True] == [
        error("x").retryable
        for error in (
            multidb.BackendError,
            multidb.BackendUnavailableError,
            multidb.BackendTimeoutError,
            multidb.OverloadedError,
        )
    ]
    assert multidb.errors.__doc__ is not None
    assert all(name in multidb.errors.__doc__ for name in tree)


def test_error_of_a_backend() -> None:
    """It says where it happened once the route has filled that in."""
    error = multidb.BackendTimeoutError("no answer within 2 seconds", ambiguous=True)
    before = str(error)
    error.store, error.backend, error.operation = "logs", "postgresql", "log_event"

    assert "no answer within 2 seconds" == before
    assert "logs.log_event on postgresql: no answer within 2 seconds" == str(error)
    assert error.ambiguous
    assert not multidb.BackendError("x").ambiguous
