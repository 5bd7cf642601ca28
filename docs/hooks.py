"""The pages that mkdocs makes while it builds: README as the first page, the recipes' settings, and the runbook."""

import re
from collections.abc import Iterator
from inspect import cleandoc
from os.path import dirname, join, normpath
from pathlib import Path

from mkdocs.exceptions import PluginError

from training.recipes import RECIPES
from training.recipes.settings import describe

REPOSITORY = Path(__file__).resolve().parents[1]
RUNBOOK = "serving/deploy/RUNBOOK.md"
LINK = re.compile(r'href="([^":#]+\.(?:md|ipynb))')
WIDE = "---\nhide: [navigation]\n---\n\n"  # the first page is alone in its section
STAGE = re.compile(r"^(classification|localization|detection)\.")


def on_files(files, config):
    """Add the pages that have no file in docs/."""
    from mkdocs.structure.files import File

    for name, text in (
        ("index.md", WIDE + (REPOSITORY / "README.md").read_text().replace("](docs/", "](")),
        ("settings.md", settings_page()),
        ("runbook.md", (REPOSITORY / RUNBOOK).read_text()),
    ):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead links to the runbook's file to its page."""
    return markdown.replace(f"](../{RUNBOOK})", "](runbook.md)")


def on_page_content(html, page, config, files):
    """Lead a notebook's links to other pages, which mkdocs resolves in Markdown alone."""

    def resolved(link: re.Match) -> str:
        linked = files.get_file_from_path(normpath(join(dirname(page.file.src_uri), link[1])))
        if linked is None:
            raise PluginError(f"expected a page behind the link '{link[1]}' of {page.file.src_uri}; there is none")
        return f'href="{linked.url_relative_to(page.file)}'

    return LINK.sub(resolved, html) if page.file.src_uri.endswith(".ipynb") else html


def settings_page() -> str:
    """Return the page of all recipes and settings, in Markdown."""
    return "\n".join(_settings_page()) + "\n"


def _settings_page() -> Iterator[str]:
    recipes = {name: recipe() for name, recipe in RECIPES.items()}
    yield cleandoc("""
        # Settings

        `overfeat train RECIPE --set KEY=VALUE` changes a setting, and `overfeat settings RECIPE` prints this list for
        one recipe. [Recipes](recipes.md) explains how to choose. `STAGE` stands for `classification`, `localization`
        and `detection`. Numbers in brackets are sections of the paper.

        | key | meaning |
        | --- | --- |
        """)
    rows = (row for recipe in recipes.values() for row in describe(recipe))
    meanings = {STAGE.sub("STAGE.", key): meaning for key, _, meaning in rows}
    for key, meaning in meanings.items():
        yield f"| `{key}` | {meaning.replace('|', chr(92) + '|').replace('*', chr(92) + '*')} |"
    for name, recipe in recipes.items():
        yield f"\n## {name}\n\n{cleandoc(RECIPES[name].__doc__ or '')}\n"
        yield f'??? note "All settings of {name}"\n\n    ```'
        yield from (f"    {key}={value}" for key, value, _ in describe(recipe))
        yield "    ```"
