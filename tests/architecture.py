"""Figures of the import graph: `python -m tests.architecture [FOLDER]`.

FOLDER has the package `streamcache`; without it, this repository. The contracts that the imports
must keep are in pyproject.toml, checked by `lint-imports`.
"""

import sys
from pathlib import Path

import grimp
import networkx

PACKAGE = "streamcache"


def part(module: str) -> str:
    """The folder or file below the package that a module belongs to."""
    return module.split(".")[1]


def import_graph(folder: Path) -> "networkx.DiGraph[str]":
    """An edge from each module to every module of the package that it imports anywhere."""
    sys.path.insert(0, str(folder))
    found = grimp.build_graph(PACKAGE, cache_dir=None)
    graph = networkx.DiGraph()
    modules = found.modules - {PACKAGE}
    graph.add_nodes_from(modules)
    for module in modules:
        imported = found.find_modules_directly_imported_by(module) & modules
        graph.add_edges_from((module, other) for other in imported)
    return graph


def between_parts(graph: "networkx.DiGraph[str]") -> "networkx.DiGraph[str]":
    """The same graph of the folders and files at the top of the package."""
    parts = networkx.DiGraph()
    parts.add_nodes_from(map(part, graph))
    parts.add_edges_from((part(a), part(b)) for a, b in graph.edges if part(a) != part(b))
    return parts


def circles(graph: "networkx.DiGraph[str]") -> list[list[str]]:
    """Groups of nodes that reach each other."""
    groups = networkx.strongly_connected_components(graph)
    return sorted(sorted(group) for group in groups if len(group) > 1)


def longest_chain(graph: "networkx.DiGraph[str]") -> list[str]:
    """The longest path, a circle counted as one node."""
    condensed = networkx.condensation(graph)
    members = condensed.nodes(data="members")
    return [" = ".join(sorted(members[i])) for i in networkx.dag_longest_path(condensed)]


def figures(folder: Path) -> str:
    graph = import_graph(folder)
    parts = between_parts(graph)
    chain = longest_chain(parts)
    lines = [
        f"modules: {len(graph)}, imports between them: {graph.number_of_edges()}",
        f"folders and files at the top: {len(parts)}, arrows between them: {len(parts.edges)}",
        f"longest chain of these: {len(chain)}: {' -> '.join(chain)}",
        f"longest chain of modules: {len(longest_chain(graph))}",
        f"circles of modules: {len(circles(graph))}",
        f"circles of folders: {len(circles(parts))}",
    ]
    lines += [f"  {' = '.join(circle)}" for circle in (*circles(graph), *circles(parts))]
    return "\n".join(lines)


if __name__ == "__main__":
    print(figures(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1]))
