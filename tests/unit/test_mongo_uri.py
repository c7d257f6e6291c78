"""How a MongoDB URI is read: nothing in it is ignored, and nothing of it is quoted."""

from __future__ import annotations

import pytest

from multidb.engines._mongo_uri import read_uri
from multidb.errors import ConfigurationError

SECRET = "s3cret-canary"


def nothing_leaks(error: BaseException) -> bool:
    """Return whether the secret is nowhere in *error* nor in what it is chained to."""
    while error is not None:
        if SECRET in f"{error!r}{error}":
            return False
        error = error.__cause__ or error.__context__
    return True


class TestUri:
    """Nothing in a URI is ignored, and nothing of it is quoted."""

    @pytest.mark.parametrize(
        ("uri", "database"),
        [
            ("mongodb://localhost", None),
            ("mongodb://localhost/", None),
            ("mongodb://localhost/bots", "bots"),
            ("mongodb://u:p%40ss@h1:27017,h2:27018/bots?replicaSet=rs0&authSource=admin&tls=true", "bots"),
            ("mongodb://h/?w=1&journal=false&readPreference=secondary&retryWrites=false", None),
            ("mongodb://h/bots?maxPoolSize=5;appName=coffee", "bots"),
            ("mongodb://[::1]:27017/bots", "bots"),
            ("mongodb+srv://u:p@cluster0.example.net/bots?retryWrites=true&w=majority", "bots"),
            ("mongodb+srv://cluster0.example.net/?srvMaxHosts=2&srvServiceName=custom", None),
        ],
    )
    def test_good(self, uri: str, database: str | None) -> None:
        """The database is the one that the URI names; no hosts of a mongodb+srv URI are looked up."""
        assert read_uri(uri)["database"] == database

    @pytest.mark.parametrize(
        "uri",
        [
            f"mongodb://user:{SECRET}@host:port/",
            f"mongodb://user:{SECRET}@host:99999/",
            f"mongodb://user:{SECRET}/tail@host/",
            f"mongodb://user:{SECRET}%zz@host/",
            f"mongodb://user:{SECRET}:more@host/",
            f"mongodb://user:{SECRET}@@host/",
            f"mongodb://user:a?{SECRET}=b@host/",
            f"mongodb://user:{SECRET}?x=1@host/",
            f"mongodb://user:{SECRET}@host/bad name",
            f"mongodb://user:{SECRET}@host,,/",
            f"mongodb://user:{SECRET}@host/?directConnection=true&loadBalanced=true",
            f"mongodb://user:{SECRET}@host/?tls=true&tlsInsecure=true&tlsAllowInvalidHostnames=true",
            f"mongodb://user:{SECRET}@host/?a",
            f"mongodb+srv://user:{SECRET}@host:27017/",
            f"mongodb+srv://user:{SECRET}@one.example.net,two.example.net/",
            f"postgres://user:{SECRET}@host/",
            f"{SECRET}",
            "mongodb://",
            "",
        ],
    )
    def test_bad(self, uri: str) -> None:
        """A wrong URI is an error that quotes nothing of it."""
        with pytest.raises(ConfigurationError, match="MONGODB_URI") as caught:
            read_uri(uri)

        assert nothing_leaks(caught.value)

    @pytest.mark.parametrize(
        "option",
        [
            "bogus=1",
            "w=-2",
            "connectTimeoutMS=soon",
            "readPreference=nearby",
            "tls=perhaps",
            "tlsCAFile=/no/such/file",
            "compressors=brotli",
            "datetime_conversion=never",
            "j=true",
        ],
    )
    @pytest.mark.parametrize("scheme", ["mongodb", "mongodb+srv"])
    def test_bad_option(self, option: str, scheme: str) -> None:
        """What PyMongo only warns about is an error, which names the option."""
        with pytest.raises(ConfigurationError, match=option.partition("=")[0]):
            read_uri(f"{scheme}://user:{SECRET}@cluster.example.net/db?retryWrites=true&{option}")
