"""README, CONTRIBUTING and the other pages name files, tests and modules that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docs/align.md",
    "docs/architecture.md",
    "docs/language-models.md",
    "docs/own-data.md",
    "docs/proof.md",
    "docs/training.md",
    "docs/transcribe.md",
    "flax_wavlm/ops/README.md",
    "benchmarks/README.md",
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FOLDERS = ("flax_wavlm", "tests", "scripts", "configs", "benchmarks", "docs", ".ci")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def named_paths(page: str) -> set[str]:
    """What a page writes as code, in a sentence or in a block of commands, and looks like a path of ours."""
    words = {word for code in CODE.findall(FENCE.sub("", text(page))) for word in code.split()}
    words |= {word for block in FENCE.findall(text(page)) for word in block.split()}
    starts = tuple(f"{folder}/" for folder in FOLDERS)
    return {word.split("::")[0].rstrip(",.;:") for word in words if word.startswith(starts)}


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_page_is_checked() -> None:
    found = [
        path
        for folder in (".", "docs", "benchmarks", "flax_wavlm/ops")
        for path in sorted((ROOT / folder).glob("*.md"))
    ]
    assert {str(path.relative_to(ROOT)) for path in found} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", text(page))):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        if not target.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    assert sorted(path for path in named_paths(page) if not (ROOT / path).exists()) == []


def test_files_of_code_named_without_a_folder_exist() -> None:
    """A name such as `step.py`: a page that has moved on would name a file that nobody finds."""
    names = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*")}
    missing = {
        f"{page}: {code}"
        for page in PAGES
        for code in CODE.findall(FENCE.sub("", text(page)))
        if re.fullmatch(r"\w+\.(py|md|sh|svg|txt)", code) and code not in names and not (ROOT / code).exists()
    }
    assert sorted(missing - WRITTEN_BY_A_RUN) == []


# Files that the pages describe and that a checkout does not have.
WRITTEN_BY_A_RUN = {
    "docs/training.md: curves.svg",
    "CHANGELOG.md: curves.svg",
    "docs/language-models.md: unigrams.txt",  # by tune-lm
}


def test_tests_that_security_names_exist() -> None:
    defined = {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    named = {code for code in CODE.findall(text("SECURITY.md")) if code.startswith("test_")}
    assert named
    assert sorted(named - defined) == []


def test_modules_that_pages_name_exist() -> None:
    """Dotted names, such as `flax_wavlm.data.audio`; of the changelog's tables the column "Now"."""
    for page in PAGES:
        shown = text(page)
        if page == "CHANGELOG.md":
            shown = "\n".join(
                line.split("|")[2]
                for line in shown.splitlines()
                if line.startswith("| `") and "|" in line[1:]
            )
        for name in re.findall(r"`(flax_wavlm(?:\.(?!json`)\w+)+)`", shown):
            assert exists(name), f"{page}: {name}"


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module or package, or a name within one."""
    path = ROOT / dotted.replace(".", "/")
    if path.with_suffix(".py").exists() or path.is_dir():
        return True
    module = path.parent.with_suffix(".py")
    module = module if module.exists() else path.parent / "__init__.py"
    return module.exists() and re.search(rf"\b{path.name}\b", module.read_text(encoding="utf-8")) is not None


def test_the_two_commands_stand_alone() -> None:
    """`.ci/run` takes the second from the README, so that what is promised there is what runs."""
    lines = text("README.md").splitlines()
    assert "pip install -e '.[dev]' && pytest" in lines
    assert "pip install -e '.[demo]' && python scripts/train_flax.py --config configs/demo.py" in lines


def test_readme_fits_a_screen_and_a_half() -> None:
    assert len(text("README.md").splitlines()) <= 115
