"""Pages, read as a browser and a screen reader do."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

_VOID = {"meta", "link", "img", "input", "path", "br"}


class Page(HTMLParser):
    """A page that has to be well-formed, complete and without need of any other file.

    Attributes:
        tags: (name, attributes) of all elements, in order.
        words: all that is written on it.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []
        self.words = " ".join("".join(self._text).split())
        assert source.startswith("<!doctype html>")
        assert dict(self.tags)["html"] == {"lang": "en"}
        for name, attributes in self.tags:
            for key in ("src", "href"):
                assert str(attributes.get(key, "data:")).startswith(("data:", "#"))
            assert name != "img" or attributes["alt"]
            assert name != "svg" or attributes.get("aria-label") or attributes.get("aria-hidden")
            if attributes.get("tabindex") == "0":
                assert attributes["role"] == "region"
                assert attributes["aria-label"]

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self._open}:
            self._text.append(data + " ")
