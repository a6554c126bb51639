"""Claims about docs/ and the other pages: a true picture of the imports, links that lead on."""

import ast
import re

import pytest
from conftest import ROOT

ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "models" / "README.md"]
OF_TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it names flags that are gone
FILES = {
    file.stem: file
    for file in [*ROOT.glob("*.py"), *ROOT.glob("toolkit/*.py")]
    if file.stem != "__init__"
}


def imports(path):
    """List the project's modules that a file imports, anywhere but for type hints."""
    names, todo = set(), [ast.parse(path.read_text("utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names |= {name.name.removeprefix("toolkit.") for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = re.sub(r"^toolkit\.?", "", node.module or "")
            names |= {package} if package else {name.name for name in node.names}
        todo += ast.iter_child_nodes(node)
    return names & FILES.keys()


@pytest.fixture(scope="module")
def graph():
    return {name: imports(file) for name, file in FILES.items()}


def below(graph, name, path=()):
    assert name not in path, f"circle of imports: {path}"
    return graph[name].union(*(below(graph, other, (*path, name)) for other in graph[name]))


def test_arrows_of_the_picture_are_the_imports_that_follow_from_no_other(graph):
    expected = sorted(
        f"  {name} --> {other}"
        for name, others in graph.items()
        for other in others
        if not any(other in below(graph, between) for between in others - {other})
    )
    picture = re.search(r"^```mermaid\ngraph TD\n(.*?)^```", ARCHITECTURE, re.M | re.S)[1]
    right = "\n".join(expected)
    assert sorted(picture.splitlines()) == expected, f"the picture should be:\n{right}"


def test_every_module_is_named_in_the_table_of_files_to_open():
    table = re.search(r"\| to change \|.*?\n\n", ARCHITECTURE, re.S)[0]
    assert sorted(re.findall(r"`(\w+)\.py`", table)) == sorted(FILES)


def test_toolkit_imports_nothing_that_lies_above_it(graph):
    above = {file.stem for file in ROOT.glob("*.py")}
    assert not {name for name in graph if name not in above and graph[name] & above}


def test_what_travels_in_a_model_imports_nothing_else_of_the_project(graph):
    from toolkit.artifact import TRAVELLING

    travelling = {name.removesuffix(".py") for name in TRAVELLING} - {"__init__"}
    assert all(graph[name] <= travelling for name in travelling)
    assert not graph["served_model"]
    text = re.search(r"^((?:`\w+\.py`[,\s]*(?:and )?)+) travel inside", ARCHITECTURE, re.M)[1]
    assert set(re.findall(r"`(\w+)\.py`", text)) == travelling


def test_functions_that_the_walk_names_exist():
    walk = ARCHITECTURE.split("## Which file to open")[0]
    for module, name in re.findall(r"`(\w+)\.(\w+)`", walk):
        if module in FILES and name != "py":
            assert re.search(rf"(def|class) {name}\b", FILES[module].read_text("utf-8")), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_lead_to_files(page):
    links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", page.read_text("utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", OF_TODAY, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_that_a_page_names_exist(page):
    import mlflow_monitoring
    import mlflow_retrain
    import mlflow_score

    scripts = (mlflow_monitoring, mlflow_retrain, mlflow_score)
    known = {field for script in scripts for field in script.Settings.__dataclass_fields__}
    for line in page.read_text("utf-8").splitlines():
        named = re.findall(r"`(--[a-z][a-z-]+)", line)
        named += re.findall(r"(--[a-z-]+)", line) if "python mlflow_" in line else []
        wrong = [
            flag for flag in named if flag[2:].removeprefix("no-").replace("-", "_") not in known
        ]
        assert not wrong, line
