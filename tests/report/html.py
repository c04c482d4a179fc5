"""A page taken apart with the standard library's parser."""

import html.parser

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Tags with their attributes, text by section, tables by rows, and every tag that was not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.unbalanced, self.tables, self.text = [], [], [], {}
        self._open, self._section = [], ""
        self.feed(text)
        self.close()
        self.unbalanced += self._open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "section":
            self._section = attrs["id"]
        if tag == "table":
            self.tables.append((self._section, []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append({"text": "", "class": (attrs.get("class") or "").split()})
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(f"/{tag}")

    def handle_data(self, data):
        self.text[self._section] = self.text.get(self._section, "") + data
        if {"td", "th"} & set(self._open):
            self.tables[-1][1][-1][-1]["text"] += data

    def table(self, section):
        """The rows of a section's first table: cells with their words and classes."""
        rows = next(rows for name, rows in self.tables if name == section)
        return [[(" ".join(cell["text"].split()), cell["class"]) for cell in row] for row in rows]

    def words(self, section):
        """The text of a section, its white space in order."""
        return " ".join(self.text[section].split())

    def attributes(self, tag):
        """The attributes of every such tag."""
        return [attrs for name, attrs in self.tags if name == tag]
