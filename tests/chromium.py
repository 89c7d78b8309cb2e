"""What a page does in headless Chromium, told by a script that is put into a copy of it."""

import html
import json
from pathlib import Path
import re
import shutil
import subprocess

from jldm.evaluation import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
const seen = {refused: [], errors: []};
addEventListener("securitypolicyviolation", event => seen.refused.push(event.blockedURI));
addEventListener("error", event => seen.errors.push(String(event.message || event.target.src)), true);
const pixel = () => document.createElement("canvas").getContext("2d");
const broken = picture => {
  try { pixel().drawImage(picture, 0, 0); return !picture.naturalWidth; } catch { return true; }
};
addEventListener("load", () => {
  const pictures = [...document.images];
  seen.pictures = pictures.length;
  seen.broken = pictures.filter(broken).length;
  seen.requests = performance.getEntriesByType("resource")
    .map(each => each.name).filter(name => !name.startsWith("data:"));
  seen.inner = innerWidth;
  seen.width = document.documentElement.scrollWidth;
  seen.paper = getComputedStyle(document.body).backgroundColor;
  seen.small = [...document.querySelectorAll("body *")].filter(
    each => each.firstChild?.nodeType === 3 && parseFloat(getComputedStyle(each).fontSize) < 12).length;
  document.documentElement.dataset.seen = JSON.stringify(seen);
});
</script>"""


def opened(text: str, folder: Path, width: int = 1280, dark: bool = False) -> dict:
  """What PROBE saw of a page, with the lines of its console."""
  copy = folder / "probed.html"
  text = text.replace(page.POLICY, f"{page.POLICY}; script-src 'unsafe-inline'")
  copy.write_text(text.replace("<title>", f"{PROBE}<title>", 1))
  command = [
    CHROMIUM,
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-background-networking",
    f"--user-data-dir={folder / 'profile'}",
    "--no-first-run",
    "--enable-logging=stderr",
    f"--window-size={width},900",
    f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    "--dump-dom",
    copy.as_uri(),
  ]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
  actual = re.search(r'data-seen="([^"]*)"', done.stdout)
  assert actual, f"the page did not load: {done.stderr[-500:]}"
  console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
  return json.loads(html.unescape(actual[1])) | {"console": console}
