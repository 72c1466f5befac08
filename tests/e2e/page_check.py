"""Reads a page as a browser would, with the standard library alone: nesting, what it loads, what it
shows."""

import html.parser

VOID = {"meta", "br"}
LOADING = {"script", "link", "img", "iframe", "object", "embed", "video", "audio", "image", "use"}


class Page(html.parser.HTMLParser):
    """`faults` is empty for a page that nests properly and loads nothing from anywhere."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.charts, self.texts, self.ids = [], [], [], [], set()
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self.open]
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        if tag in LOADING:
            self.faults.append(f"<{tag}> loads something")
        for name, value in attrs:
            if name in ("src", "xlink:href") or (name == "href" and not value.startswith("#")):
                self.faults.append(f"<{tag}> refers to {value}")
            if name.startswith("on"):
                self.faults.append(f"<{tag}> has code in {name}")
            if name == "id":
                self.ids.add(value)
            if tag == "svg" and name == "aria-label":
                self.charts.append(value)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes another tag")

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            if "url(" in data or "@import" in data:
                self.faults.append("the style sheet loads something")
        elif data.strip():
            self.texts.append(data.strip())
