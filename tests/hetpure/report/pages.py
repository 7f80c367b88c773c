"""Pages as a browser's parser sees them."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "line", "circle", "polyline"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""
    inner: list["Element"] = field(default_factory=list)

    def all(self, tag: str) -> list["Element"]:
        """The elements of that tag in it, at any depth, in order."""
        here = [element for child in self.inner for element in child.all(tag)]
        return [self, *here] if self.tag == tag else here


class Parser(HTMLParser):
    """Builds the tree. AssertionError where a tag is closed that is not the last one opened."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inner.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].inner.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def parsed(page: str) -> Element:
    parser = Parser()
    parser.feed(page)
    assert parser.open == [parser.root], "a tag is not closed"
    return parser.root


def check_page(page: str) -> Element:
    """What holds for every page: whole, self-contained, named for those who do not see it, and
    with no markup but the templates'. The tree."""
    root = parsed(page)
    elements = [e for tag in {e.tag for e in _each(root)} for e in root.all(tag)]
    assert len(root.all("h1")) == 1
    assert len(root.all("script")) == len(root.all("style")) == 1
    assert root.all("html")[0].attributes["lang"] == "en"
    for element in elements:
        assert not [name for name in element.attributes if name.startswith("on")], element
        assert not element.attributes.get("href", "#").startswith(("//", "javascript:"))
        assert "://" not in element.attributes.get("href", "")
    assert all(i.attributes["src"].startswith("data:image/png;base64,") for i in root.all("img"))
    assert all(image.attributes["alt"] for image in root.all("img"))
    assert all(svg.all("title")[0].text.strip() for svg in root.all("svg"))
    assert "url(" not in page and "@import" not in page and "http" not in page.replace("http-", "")
    ids = [e.attributes["id"] for e in elements if "id" in e.attributes]
    links = [a.attributes["href"] for a in root.all("a")]
    assert len(ids) == len(set(ids))
    assert all(link[1:] in ids for link in links if link.startswith("#"))
    for table in root.all("table"):
        assert table.all("caption")[0].text.strip()
        heads = [head for head in table.all("th") if head.attributes["scope"] == "col"]
        assert heads and all(head.text.strip() for head in heads)
        for row in table.all("tbody")[0].all("tr"):
            assert len(row.inner) == len(heads)
            assert row.inner[0].attributes["scope"] == "row"
    style = root.all("style")[0].text
    assert "color-scheme: light dark" in style and "@media print" in style
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    names = {line.split(":")[0] for line in light.replace(";", "\n").split() if "--" in line[:2]}
    assert names and all(f"{name}:" in dark.split("\n}")[0] for name in names)
    return root


def _each(element: Element) -> list[Element]:
    return [element, *(e for child in element.inner for e in _each(child))]


def cells(root: Element, caption: str) -> list[list[str]]:
    """The rows of the table whose caption begins so."""
    (table,) = [
        t for t in root.all("table") if t.all("caption")[0].text.strip().startswith(caption)
    ]
    rows = table.all("tbody")[0].all("tr")
    return [[cell.text.strip() for cell in row.inner] for row in rows]
