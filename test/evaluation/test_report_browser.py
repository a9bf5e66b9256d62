# SPDX-License-Identifier: Apache-2.0
"""The report in headless Chromium: nothing fails, all figures show, everything can be read."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from replay_directories import metrics, write_replay

from oc_perception.evaluation.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (1280, 390)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--virtual-time-budget=4000",
    "--dump-dom",
)
PROBE = """
<script>
function colour(text) {
  const parts = text.match(/[\\d.]+/g).map(Number);
  return parts.length > 3 && parts[3] === 0 ? null : parts.slice(0, 3);
}
function luminance(rgb) {
  const [r, g, b] = rgb.map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
}
function backdrop(element) {
  for (; element; element = element.parentElement) {
    const found = colour(getComputedStyle(element).backgroundColor);
    if (found) return found;
  }
  return [255, 255, 255];
}
function contrast(element) {
  const style = getComputedStyle(element);
  const ink = element instanceof SVGElement ? style.fill : style.color;
  const [a, b] = [luminance(colour(ink)), luminance(backdrop(element))].sort((x, y) => y - x);
  return (a + .05) / (b + .05);
}
window.addEventListener('load', () => {
  const figures = [...document.querySelectorAll('img, svg')].map(e => {
    const box = e.getBoundingClientRect();
    const drawn = e.tagName === 'IMG' ? e.naturalWidth : e.querySelector('line, rect, path');
    return {kind: e.tagName, width: box.width, height: box.height, drawn: !!drawn};
  });
  const faint = [...document.querySelectorAll('*')].filter(e =>
    [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length
    && !['STYLE', 'SCRIPT', 'TITLE', 'title'].includes(e.tagName) && contrast(e) < 4.5
  ).map(e => `${e.tagName} ${e.textContent.slice(0, 40)} ${contrast(e).toFixed(2)}`);
  parent.postMessage({
    width: innerWidth, figures, faint,
    overflow: document.documentElement.scrollWidth - innerWidth,
    requests: performance.getEntriesByType('resource').map(e => e.name)
      .filter(name => !name.startsWith('data:')),
    background: getComputedStyle(document.body).backgroundColor,
  }, '*');
});
</script>
"""
COLLECTOR = """<!DOCTYPE html><html><body><pre id="found"></pre><script>
const found = [];
addEventListener('message', message => {
  found.push(message.data);
  document.getElementById('found').textContent = JSON.stringify(found);
});
</script>%s</body></html>"""


def browse(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """The page as it ends up, and what the console said; no host name can be looked up."""
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, re.findall(r"CONSOLE[:(].*", done.stderr)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here to look at the report with")
    directory = tmp_path_factory.mktemp("replay")
    bags = [metrics("a-rather-long-name-of-a-bag_2024-05-17-10-22-31", 0), metrics("bag_1", 1)]
    return write_report(write_replay(directory, bags, [{"bag": "bad", "error": "It is empty."}]))


@pytest.fixture(scope="module", params=["light", "dark"])
def views(request, report, tmp_path_factory) -> list[dict]:
    """What the page finds in itself at each of WIDTHS, in frames so narrow."""
    folder = tmp_path_factory.mktemp(request.param)
    text = report.read_text()
    assert POLICY in text
    probed = text.replace(POLICY, f"{POLICY}; script-src 'unsafe-inline'")
    probed = probed.replace("</body>", PROBE + "</body>")
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(probed)}">'
        "</iframe>"
        for width in WIDTHS
    )
    (folder / "page.html").write_text(COLLECTOR % frames)
    dark = ["--blink-settings=preferredColorScheme=0"] if request.param == "dark" else []
    dom, console = browse(folder / "page.html", folder / "profile", *dark)
    assert console == []
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))
    assert sorted(view["width"] for view in found) == sorted(WIDTHS)
    lightness = sum(map(int, re.findall(r"\d+", found[0]["background"])))
    assert lightness < 150 if dark else lightness > 600
    return found


def test_the_page_itself_says_nothing_on_the_console(report, tmp_path):
    dom, console = browse(report, tmp_path / "profile")
    assert console == []
    assert "Replay of 2 bags" in dom


def test_a_console_error_would_be_seen(report, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        report.read_text().replace("</main>", '<img src="https://a.test/b.png"></main>')
    )
    _, console = browse(page, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)


def test_all_figures_are_drawn_at_every_width(views):
    for view in views:
        assert len(view["figures"]) > 15
        for figure in view["figures"]:
            assert figure["width"] >= 13 and figure["height"] >= 10, figure
            assert figure["drawn"], figure
        pictures = [figure for figure in view["figures"] if figure["kind"] == "IMG"]
        assert len(pictures) >= 6 and all(p["width"] >= 300 for p in pictures)


def test_nothing_is_requested_and_nothing_is_wider_than_the_page(views):
    for view in views:
        assert view["requests"] == []
        assert view["overflow"] <= 0


def test_all_text_stands_out_from_what_is_behind_it(views):
    """A contrast of 4.5, as WCAG 2.1 AA asks for."""
    for view in views:
        assert view["faint"] == []
