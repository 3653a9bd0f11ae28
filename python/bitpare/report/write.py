"""Write the HTML file of a report."""

import json

from bitpare._build_info import version
from bitpare.report import sections
from bitpare.report.page import Page
from bitpare.report.style import CSS, JS
from bitpare.report.svg import escaped


def html_of(page: Page) -> str:
    """Return the page as one self-contained HTML file."""
    made = [(title, text) for title, text in sections.all_of(page) if text]
    links = "".join(f'<a href="#{_id(t)}">{escaped(t)}</a>' for t, _ in made)
    body = "".join(
        f'<section id="{_id(t)}"><h2>{escaped(t)}</h2>{text}</section>' for t, text in made
    )
    data = json.dumps(page.data()).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(page.title)}</title><style>{CSS}</style></head><body><main>"
        f"<h1>{escaped(page.title)}</h1><p>{escaped(' · '.join(page.facts))}</p>"
        f"{sections.tiles(page)}<nav>{links}</nav>{body}"
        f"<footer>Written by bitpare {escaped(str(version))}. All numbers of this page are in it "
        "as JSON, in the element <code>bitpare-data</code>.</footer></main>"
        '<div id="tip" role="status"></div>'
        f'<script type="application/json" id="bitpare-data">{data}</script>'
        f"<script>{JS}</script></body></html>\n"
    )


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")
