"""The page as a browser lays it out: nothing missing, nothing cut off, nothing fetched."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
MEASURE = """
<script>
addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("svg")].map(svg => {
    const outer = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(t => {
      const r = t.getBoundingClientRect();
      return {text: t.textContent.trim(), x: r.x, y: r.y, width: r.width, height: r.height};
    });
    return {x: outer.x, y: outer.y, width: outer.width, height: outer.height, texts: texts};
  });
  const result = {
    width: innerWidth, page: document.documentElement.scrollWidth, svgs: boxes,
    fetched: performance.getEntriesByType("resource").map(e => e.name),
    colour: getComputedStyle(document.body).color,
    tables: [...document.querySelectorAll("table")].map(t => t.getBoundingClientRect().height),
  };
  const out = document.createElement("pre");
  out.id = "measured";
  out.textContent = JSON.stringify(result);
  document.body.append(out);
});
</script>
"""

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")


def browse(page: Path, profile: Path, width: int, *more: str) -> str:
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900", *more]
    ran = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def measured(page: Path, profile: Path, width: int, *more: str) -> dict[str, Any]:
    probe = profile.with_name("probe.html")
    probe.write_text(page.read_text() + MEASURE)
    dom = browse(probe, profile, width, "--dump-dom", *more)
    found = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    assert found, "the page never finished loading"
    return dict(json.loads(unescape(found.group(1))))


@pytest.fixture
def page(summarised: Path) -> Path:
    return summarised / "index.html"


@pytest.mark.parametrize("width", [1000, 500])
def test_layout(page: Path, tmp_path: Path, width: int) -> None:
    seen = measured(page, tmp_path / "profile", width)
    assert seen["width"] == width and seen["page"] <= width, (
        "the page itself never scrolls sideways"
    )
    assert not seen["fetched"]
    assert len(seen["svgs"]) == 12 and all(height > 50 for height in seen["tables"])
    for svg in seen["svgs"]:
        assert svg["width"] >= (900 if width == 1000 else 600) and svg["height"] > 100
        assert len(svg["texts"]) > 8
        for text in svg["texts"]:
            assert text["height"] >= (11 if width == 1000 else 7), f"too small: {text}"
            assert text["x"] >= svg["x"] - 1, f"cut off: {text}"
            assert text["x"] + text["width"] <= svg["x"] + svg["width"] + 2, f"cut off: {text}"
        assert not (hidden := overlaps(svg["texts"])), hidden


def test_dark_and_light(page: Path, tmp_path: Path) -> None:
    dark = "--blink-settings=preferredColorScheme=0"
    colours = [
        measured(page, tmp_path / f"profile{i}", 1000, *more)["colour"]
        for i, more in enumerate([[], [dark]])
    ]
    light_ink, dark_ink = (sum(map(int, re.findall(r"\d+", colour))) for colour in colours)
    assert light_ink < 200 < 500 < dark_ink


def test_a_picture_of_it_shows_ink(page: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    target = tmp_path / "page.png"
    browse(page, tmp_path / "profile", 1000, f"--screenshot={target}")
    picture = imread(target)
    assert picture.shape[:2] == (900, 1000)
    assert picture[..., :3].std() > 0.05 and len(set(picture[..., 0].round(2).ravel())) > 20


def overlaps(texts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of texts of which one hides a good part of the other."""
    found = []
    for i, a in enumerate(texts):
        for b in texts[i + 1 :]:
            width = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
            height = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
            if width > 0 and height > 0:
                smaller = min(a["width"] * a["height"], b["width"] * b["height"])
                if width * height > 0.15 * smaller:
                    found.append((a["text"], b["text"]))
    return found
