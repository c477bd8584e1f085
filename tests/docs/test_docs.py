"""The documents are true: links, paths, options, config keys, example configs, quoted messages."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from projects.sa2va.config import load_config
from projects.sa2va.errors import ConfigError
from tests.conftest import ROOT

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        *(ROOT / name for name in ("data/README.md", "work_dirs/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
FULL = ROOT / "projects/sa2va/configs/sa2va_vessel_finetune.py"
BASELINES = [
    ROOT / f"projects/sa2va/configs/baselines/{name}_arcade.py" for name in ("unet", "frangi")
]
PICTURE = ROOT / "docs/images/demo_result.png"
# What is in the repository; data/ and work_dirs/ hold what users and runs put there.
_TOP = ("projects/", "tools/", "configs/", "docs/", "tests/", "benchmarks/", ".ci/")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ROOTS = ("model.", "processor.", "train_", "val_", "test_", "optim_", "param_", "default_hooks.")


def page_ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in _FENCE.findall(page.read_text()) if name == language]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def commands(page: Path) -> list[str]:
    """The shell commands of a page, continued lines joined."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    inline = [code for code in inline_code(page) if re.match(r"(python|bash|make) ", code)]
    return [line for line in (*lines, *inline) if re.search(r"\btools/\w+\.(py|sh)\b", line)]


def tool_and_words(command: str) -> tuple[str, list[str]]:
    """Name of the tool whose options a command shows, and the command's words."""
    words = shlex.split(command, comments=True)
    at = next(i for i, word in enumerate(words) if re.fullmatch(r"tools/\w+\.(py|sh)", word))
    tool = Path(words[at]).stem
    if words[at].endswith(".sh"):
        tool = words[at + 1]
    return tool, words[at + 1 :]


@cache
def options_of(tool: str) -> frozenset[str]:
    """Every option that a tool's parser accepts, read off its source (importing takes seconds)."""
    tree = ast.parse((ROOT / "tools" / f"{tool}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    added = [call for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    names = [arg.value for call in added for arg in call.args if isinstance(arg, ast.Constant)]
    return frozenset({name for name in names if name.startswith("--")} | {"--help"})


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file == PICTURE:
            continue  # test_the_picture_of_the_readme_is_there
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_picture_of_the_readme_is_there():
    assert f"]({PICTURE.relative_to(ROOT).as_posix()})" in (ROOT / "README.md").read_text()
    assert PICTURE.is_file(), "make demo, then copy one of its pictures there"


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_paths_exist(page):
    text = re.sub(r"https?://\S+", "", page.read_text())
    # Own configs that a page tells the reader to write are called my_*.py.
    found = re.findall(r"(?<![\w./-])(?:\.ci|[a-z]+)/[\w./-]*\w", text)
    paths = {p for p in found if p.startswith(_TOP) and not Path(p).name.startswith("my_")}
    missing = [p for p in paths if not (ROOT / p).exists() and (ROOT / p) != PICTURE]
    assert missing == []


def test_the_readme_names_every_shipped_config():
    folder = ROOT / "projects/sa2va/configs"
    shipped = {path.relative_to(ROOT).as_posix() for path in folder.rglob("*.py")}
    named = set(re.findall(r"projects/sa2va/configs/[\w/]+\.py", (ROOT / "README.md").read_text()))
    named = {name for name in named if not Path(name).name.startswith("my_")}
    assert named == shipped


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_options_are_accepted(page):
    wrong = []
    for command in commands(page):
        tool, words = tool_and_words(command)
        if not (ROOT / "tools" / f"{tool}.py").is_file():
            wrong.append(f"{command}: no verb {tool}")
            continue
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        wrong += [f"{option} of {command}" for option in sorted(used - options_of(tool))]
    assert wrong == []


def test_the_readme_shows_the_tools():
    shown = {tool_and_words(command)[0] for command in commands(ROOT / "README.md")}
    assert {"train", "test", "print_config"} <= shown


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_overrides_in_commands_load(page):
    for command in commands(page):
        _, words = tool_and_words(command)
        if "--cfg-options" not in words:
            continue
        given = words[words.index("--cfg-options") + 1 :]
        pairs = [word.split("=", 1) for word in given if not word.startswith("--")]
        config = next(word for word in words if word.endswith(".py"))
        load_config(ROOT / config, {key: value_of(text) for key, text in pairs if key != "key"})


def value_of(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def error_of(path: Path, key: str, value: object, check: bool) -> str | None:
    """What is wrong with an override, None where nothing is."""
    try:
        load_config(path, {key: value}, check=check)
    except ConfigError as error:
        return error.found
    return None


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_config_keys_exist(page):
    keys = set()
    for code in inline_code(page):
        key, _, value = code.partition("=")
        if re.fullmatch(r"[a-z]\w*(\.\w+)+", key) and key.startswith(_ROOTS):
            keys.add((key, value))
    wrong = []
    for key, value in sorted(keys):
        # Without a value None, which any key takes: only whether it exists is asked.
        given = value_of(value) if value else None
        error = error_of(FULL, key, given, bool(value))
        if error and all(error_of(path, key, given, bool(value)) for path in BASELINES):
            wrong.append(f"{key}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_example_configs_load(page, tmp_path):
    for text in blocks(page, "python"):
        name = re.match(r"# (projects/sa2va/configs/my_\w+\.py)\n", text)
        assert name, f"a python block without the file name of a config in its first line: {text}"
        folder = (ROOT / name[1]).parent
        base = re.search(r'"\./([\w/]+\.py)"', text)
        assert base, f"a config without _base_: {text}"
        path = tmp_path / Path(name[1]).name
        path.write_text(text.replace(base[0], repr(str(folder / base[1]))))
        assert load_config(path).to_dict() != load_config(folder / base[1]).to_dict()


@cache
def messages() -> tuple[str, ...]:
    """All texts in the code, ``...`` where a value is filled in."""
    texts = []
    for path in [*(ROOT / "projects").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return tuple(texts)


def is_said(quoted: str) -> bool:
    """Whether some text of the code holds ``quoted``, in which ``...`` stands for anything."""
    pattern = re.compile(r".*".join(re.escape(part.strip()) for part in quoted.split("...")))
    return any(pattern.search(text) for text in messages())


def test_quoted_messages_exist():
    page = ROOT / "docs/errors.md"
    # Messages are the code spans with a blank in them that are no command, option or key=value.
    spans = [c for c in inline_code(page) if " " in c and not re.match(r"python |--|expected: ", c)]
    assert len(spans) > 30
    assert [span for span in spans if not is_said(span)] == []


def test_results_have_a_section_for_each_demo():
    text = (ROOT / "docs/results.md").read_text()
    assert "## Synthetic demo" in text and "## ARCADE demo" in text
    assert "make demo\n" in text and "make demo-arcade" in text


def test_make_targets_and_variables_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split())
    wrong = []
    for page in PAGES:
        lines = "\n".join(blocks(page, "bash")).splitlines() + inline_code(page)
        for line in lines:
            if match := re.match(r"make ([a-z-]+)", line):
                variables = re.findall(r" ([A-Z_]+)=", line)
                wrong += [v for v in variables if not re.search(rf"^{v} \?=", makefile, re.M)]
                wrong += [match[1]] if match[1] not in targets else []
    assert wrong == []
