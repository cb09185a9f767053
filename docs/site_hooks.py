"""What ``make site`` does beside what mkdocs does by itself.

Pages that live elsewhere in the repository are shown as well, with their links; a page that ``mkdocs.yml`` does not
place yet is listed under *How to*; and ``llms.txt`` lists every page with its first sentence (https://llmstxt.org).
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/quickstart_pair/README.md": "examples/quickstart_pair.md",
    "examples/smollm2/README.md": "examples/smollm2.md",
}
"""Pages outside ``docs``, and where the site has them."""

ORIGIN = {page: source for source, page in ELSEWHERE.items()}
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^```.*?^```\s*?$", flags=re.DOTALL | re.MULTILINE)
HEADER = re.compile(r"\A---\n.*?\n---\n+", flags=re.DOTALL)
"""What jupytext says of the kernel."""
UNPLACED = "How to"

_pages: list[tuple[str, str, str]] = []


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every page of ``docs`` is somewhere in the navigation."""
    _pages.clear()
    placed = set(_leaves(config.nav))
    docs = Path(config.docs_dir)
    lacking = sorted({path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - placed)
    for section in config.nav or []:
        if UNPLACED in section:
            section[UNPLACED] += lacking
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lives elsewhere."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for script in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
        page = jupytext.writes(jupytext.read(script), fmt="md")
        files.append(File.generated(config, f"tutorials/{script.stem}.md", content=HEADER.sub("", page)))
    for path in sorted((ROOT / "examples").rglob("*.*")):
        if path.suffix in (".py", ".sh", ".yaml"):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site needs them, Markdown inside what is folded away, and a number with its error on one line."""
    uri = page.file.src_uri
    text = "".join(
        part if fenced else _unbroken(_linked(part.replace("<details>", '<details markdown="1">'), uri))
        for part, fenced in _parts(markdown)
    )
    return text


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Remember the pages in their order."""
    for page in nav.pages:
        section = list(page.ancestors)[-1].title or "" if page.ancestors else ""
        _pages.append((section, page.file.src_uri, page.file.url))
    return nav


def on_post_build(config: MkDocsConfig) -> None:
    """Write ``llms.txt``."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    last = ""
    for section, uri, url in _pages:
        if section != last:
            lines += ["", f"## {section}", ""]
            last = section
        title, sentence = _opening(uri)
        lines.append(f"- [{title}]({url or './'})" + (f": {sentence}" if sentence else ""))
    Path(config.site_dir, "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [leaf for part in (nav.values() if isinstance(nav, dict) else nav or []) for leaf in _leaves(part)]


def _parts(markdown: str) -> list[tuple[str, bool]]:
    """The text, cut at its code blocks, and whether each part is one."""
    parts, end = [], 0
    for block in FENCE.finditer(markdown):
        parts += [(markdown[end : block.start()], False), (block.group(), True)]
        end = block.end()
    return [*parts, (markdown[end:], False)]


def _linked(text: str, uri: str) -> str:
    """`text` of the page `uri`, with links between files of the repository turned to links between pages."""
    here = posixpath.dirname(ORIGIN.get(uri, f"docs/{uri}"))

    def turned(found: re.Match[str]) -> str:
        before, target, after = found.groups()
        if ":" in target:
            return found.group()
        there = posixpath.normpath(posixpath.join(here, target))
        page = ELSEWHERE.get(there, there.removeprefix("docs/"))
        if there == "README.md":
            page = "index.md"
        return before + posixpath.relpath(page, posixpath.dirname(uri) or ".") + after

    return LINK.sub(turned, text)


def _unbroken(text: str) -> str:
    """`text`, in whose tables no line ends between a number and its error."""
    return re.sub(
        r"^\|.*$",
        lambda row: re.sub(r"(?<=\d) ([±≥]) (?=\d)", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", row[0]),
        text,
        flags=re.M,
    )


def _opening(uri: str) -> tuple[str, str]:
    """Title and first sentence of a page."""
    path = ROOT / ORIGIN.get(uri, f"docs/{uri}")
    if not path.is_file():  # a tutorial, which is a script
        text = re.sub(r"^# ?", "", path.with_suffix(".py").read_text(encoding="utf-8"), flags=re.MULTILINE)
    else:
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
    title = re.search(r"^# (.+)$", text, flags=re.MULTILINE)
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    prose = next((part for part in paragraphs if re.match(r"[A-Z`\[*][^|]", part)), "")
    sentence = re.split(r"(?<=[.!?:]) ", LINK.sub("]", prose).replace("[", "").replace("]", ""))[0]
    return (title.group(1) if title else path.stem), sentence.rstrip(":")
