"""Pages and files of the project that do not lie in docs: an MkDocs hook.

Links in a page are written so that they work where its file lies. Here they are led to the page that the
site has for their target; any other file of the project that is linked to is copied.
"""

from __future__ import annotations

import posixpath
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "benchmarks/domains/README.md": "domains.md",
    "cookbook/README.md": "cookbook.md",
    "integrations/langchain/README.md": "langchain.md",
    "integrations/llama_index/README.md": "llama-index.md",
    "integrations/vllm/README.md": "vllm.md",
}
"""Where they are to be found on the site."""
_INSTEAD = {"README.md": "index.md"}
_CLI = "reference/cli.md"
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, all that is linked to, and the command line's reference."""
    for source, page in PAGES.items():
        files.append(_from_project(source, page, config))
    pending = [file for file in files if file.is_documentation_page()]
    while pending:
        for target in _linked_files(pending.pop()):
            if files.get_file_from_path(target) is None:
                added = _from_project(target, target, config, InclusionLevel.NOT_IN_NAV)
                files.append(added)
                pending += [added] if added.is_documentation_page() else []
    files.append(File.generated(config, _CLI, content=_cli_reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead a page's links to the site's pages."""
    folder = posixpath.dirname(page.file.src_uri)

    def lead(link: re.Match[str]) -> str:
        target = _site_uri(_target(page.file, link["path"]))
        return posixpath.relpath(target, folder or ".") + (link["anchor"] or "")

    return markdown if page.file.src_uri == _CLI else _LINK.sub(lead, markdown)


def _linked_files(file: File) -> list[str]:
    """Files outside docs that a page links to and that are no page yet, by their path in the project."""
    found = [_target(file, link["path"]) for link in _LINK.finditer(file.content_string)]
    return [target for target in found if _site_uri(target) == target and (ROOT / target).is_file()]


def _target(file: File, path: str) -> str:
    """Path in the project of what a page's link leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(_source(file)), path))


def _source(file: File) -> str:
    """A file's path in the project."""
    assert file.abs_src_path is not None
    return Path(file.abs_src_path).relative_to(ROOT).as_posix()


def _site_uri(target: str) -> str:
    """Where the site has a file of the project."""
    page = PAGES.get(target) or _INSTEAD.get(target)
    return page or (target.removeprefix("docs/"))


def _from_project(
    source: str, uri: str, config: MkDocsConfig, inclusion: InclusionLevel = InclusionLevel.INCLUDED
) -> File:
    return File.generated(config, uri, abs_src_path=str(ROOT / source), inclusion=inclusion)


def _cli_reference() -> str:
    """What typer itself says of the commands."""
    command = [sys.executable, "-m", "typer", "samkv_apps.main", "utils", "docs", "--name", "samkv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.replace("# `samkv`", "# Command line", 1)
