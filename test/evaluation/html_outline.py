# SPDX-License-Identifier: Apache-2.0
"""A strict look at HTML: every element closed, in its place, with each attribute once."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr"}
SVG_LEAVES = {"line", "rect", "path", "circle", "polyline"}
BLOCKS = {"p", "div", "ul", "table", "figure", "section", "h2", "h3", "h4", "pre", "dl"}


class Outline(HTMLParser):
    """Checks nesting while it reads; keeps every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert not (tag in BLOCKS and "p" in self.open), (
            f"<{tag}> inside <p>, line {self.getpos()}"
        )
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute comes twice: <{tag} {names}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SVG_LEAVES, f"<{tag}/> closes itself"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]
