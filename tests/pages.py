"""Reads pages in tests: what a browser would fetch and run, what a reader would see, and the data of the charts."""

import json
from html.parser import HTMLParser

VOID = ("meta", "img", "br", "link", "line", "circle")


class Page(HTMLParser):
    """A page: addresses to fetch, tags, scripts by type, headings, tables as lists of rows, and the text."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.tags, self.scripts, self.headings, self.tables, self.text, self.open = (
            [],
            [],
            [],
            [],
            [],
            "",
            [],
        )
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [found for name, found in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append([dict(attributes).get("type"), ""])
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, "tags must be closed in order"

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[-1][1] += data
        elif "style" not in self.open:
            self.text += data
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data
            elif "h2" in self.open:
                self.headings[-1] += data

    def table(self, corner):
        """The table whose first column has this cell: its rows by their first cell."""
        (found,) = [rows for rows in self.tables if corner in [row[0] for row in rows]]
        return {row[0]: row[1:] for row in found}

    @property
    def specs(self):
        """The charts' specifications."""
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]

    @property
    def charts(self):
        """By the charts' titles: by the series' labels, their points."""
        return {spec["title"]: points(spec) for spec in self.specs}


def points(spec):
    """By the labels of a chart's series, their points."""
    if "transform" not in spec:
        return {"": spec["data"]["values"]}
    styles = spec["transform"][0]["from"]["data"]["values"]
    return {style["s"]: [row for row in spec["data"]["values"] if row["i"] == style["i"]] for style in styles}


def heights(chart):
    """By the labels of a chart's series, their measured values of y."""
    return {label: [row["y"] for row in rows if row["y"] is not None] for label, rows in chart.items()}
