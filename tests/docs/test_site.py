"""The site: built without a warning, and complete in itself."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href|srcset)=["'](?:https?:)?//|url\(["']?(?:https?:)?//""")
"""What a browser would fetch from elsewhere by itself; a link that a reader may follow is none."""


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)  # links would be followed, and the site built beside the sources
    for name in ("jaxface", "weights_convert"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    site = tmp_path / "site"
    pages = {path.relative_to(site): path.read_text() for path in site.rglob("*") if path.suffix in (".html", ".css")}
    assert {Path("index.html"), Path("howto/loop.html"), Path("reference.html")} <= set(pages)
    for path, text in pages.items():
        assert not FETCHED.search(text), path
    assert "Raises UserError" in pages[Path("reference.html")]
    assert FETCHED.search('<link rel="stylesheet" href="https://fonts.example/css">')
