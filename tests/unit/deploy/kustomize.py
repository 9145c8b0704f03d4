"""Builds a Kustomize overlay the way `kustomize build` does, as far as ours go.

Resources, generators (without the hash in the name), images, JSON patches. Where `kubectl` is at
hand a test holds the result against the real thing's.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
_KNOWN = {
    *("apiVersion", "kind", "namespace", "resources", "configMapGenerator", "secretGenerator"),
    *("images", "patches"),
}


def build(folder: Path) -> list[Document]:
    """Every document of the overlay in `folder`.

    Raises:
        ValueError: it uses something that this does not know.
    """
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    if unknown := set(kustomization) - _KNOWN:
        raise ValueError(f"{folder}: {unknown}")
    documents: list[Document] = []
    for resource in kustomization.get("resources", []):
        path = (folder / resource).resolve()
        documents += build(path) if path.is_dir() else _documents(path)
    for generator in kustomization.get("configMapGenerator", []):
        _generate(documents, "ConfigMap", "data", generator, folder)
    for generator in kustomization.get("secretGenerator", []):
        _generate(documents, "Secret", "stringData", generator, folder)
    images = {image["name"]: image for image in kustomization.get("images", [])}
    for document in documents:
        _set_images(document, images)
        if document["kind"] != "Namespace":
            document["metadata"]["namespace"] = kustomization["namespace"]
    for patch in kustomization.get("patches", []):
        _patch(documents, patch, folder)
    return documents


def _documents(path: Path) -> list[Document]:
    return [deepcopy(document) for document in yaml.safe_load_all(path.read_text("utf-8"))]


def _generate(
    documents: list[Document], kind: str, field: str, generator: Document, folder: Path
) -> None:
    data = dict(literal.split("=", 1) for literal in generator.get("literals", []))
    for name in generator.get("files", []):
        path = folder / name
        # Secrets are made by the operator; only their names are known here.
        data[path.name] = path.read_text("utf-8") if kind == "ConfigMap" else ""
    name = generator["name"]
    if generator.get("behavior") == "merge":
        _find(documents, kind, name)[field].update(data)
        return
    documents.append({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, field: data})


def _find(documents: list[Document], kind: str, name: str) -> Document:
    [found] = [
        document
        for document in documents
        if document["kind"] == kind and document["metadata"]["name"] == name
    ]
    return found


def _set_images(value: Any, images: dict[str, Document]) -> None:
    if isinstance(value, dict):
        image = images.get(str(value.get("image")))
        if image is not None:
            value["image"] = f"{image['newName']}:{image['newTag']}"
        for part in value.values():
            _set_images(part, images)
    elif isinstance(value, list):
        for part in value:
            _set_images(part, images)


def _patch(documents: list[Document], patch: Document, folder: Path) -> None:
    text = patch.get("patch") or (folder / patch["path"]).read_text("utf-8")
    target = _find(documents, patch["target"]["kind"], patch["target"]["name"])
    for operation in yaml.safe_load(text):
        _apply(target, operation)


def _apply(document: Any, operation: Document) -> None:
    """RFC 6902, `add` and `replace`."""
    *path, last = (
        part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
    )
    parent = document
    for part in path:
        parent = parent[int(part) if isinstance(parent, list) else part]
    value = deepcopy(operation["value"])
    if isinstance(parent, list):
        if operation["op"] == "replace":
            parent[int(last)] = value
        elif last == "-":
            parent.append(value)
        else:
            parent.insert(int(last), value)
        return
    if operation["op"] == "replace":
        assert last in parent, f"{operation['path']}: nothing to replace"
    parent[last] = value
