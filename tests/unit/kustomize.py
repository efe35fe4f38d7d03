"""What `kubectl kustomize` makes of a folder, for the kustomizations in deploy/kubernetes.

Only what those use: resources, components, strategic merge patches, labels, namespace, images. Anything else is an
error here, so that nothing is passed over in silence. test_kubernetes.py compares it with the original, if it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

#: Lists that are merged, and the field by which their items are told apart; every other list is replaced.
MERGED = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}
KNOWN = {"apiVersion", "kind", "resources", "components", "patches", "namespace", "labels", "images"}


def documents(path: Path) -> list[Object]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def build(folder: Path, objects: Sequence[Object] = ()) -> list[Object]:
    """The objects that a folder with a kustomization.yaml stands for; of a component, what it makes of `objects`."""
    (plan,) = documents(folder / "kustomization.yaml")
    if unknown := plan.keys() - KNOWN:
        raise ValueError(f"{folder}/kustomization.yaml has {sorted(unknown)}, which this renderer does not know")
    objects = deepcopy(list(objects))
    for name in plan.get("resources", []):
        path = folder / name
        objects += build(path) if path.is_dir() else documents(path)
    for name in plan.get("components", []):
        objects = build(folder / name, objects)
    for entry in plan.get("patches", []):
        (patch,) = documents(folder / entry["path"]) if "path" in entry else [yaml.safe_load(entry["patch"])]
        (index,) = (i for i, o in enumerate(objects) if _name(o) == _name(patch))
        objects[index] = _merged(objects[index], patch)
    for label in plan.get("labels", []):
        if label.keys() != {"pairs"}:
            raise ValueError(f"{folder}/kustomization.yaml has labels with {sorted(label)}, not pairs alone")
        for o in objects:
            o["metadata"].setdefault("labels", {}).update(label["pairs"])
    if namespace := plan.get("namespace"):
        for o in objects:
            o["metadata"]["name" if o["kind"] == "Namespace" else "namespace"] = namespace
    for image in plan.get("images", []):
        for o in objects:
            for container in o.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
                if container["image"].partition(":")[0] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return objects


def _name(o: Object) -> tuple[str, str]:
    return o["kind"], o["metadata"]["name"]


def _merged(value: Any, patch: Any, field: str = "") -> Any:
    if isinstance(patch, dict) and isinstance(value, dict):
        if odd := [key for key in patch if key.startswith("$")]:
            raise ValueError(f"a patch has {odd}, which this renderer does not know")
        result = {key: _merged(old, patch[key], key) if key in patch else old for key, old in value.items()}
        result |= {key: deepcopy(new) for key, new in patch.items() if key not in value}
        return {key: new for key, new in result.items() if new is not None}
    if isinstance(patch, list) and isinstance(value, list) and field in MERGED:
        by = MERGED[field]
        patches = {item[by]: item for item in patch}
        names = {item[by] for item in value}
        new = [deepcopy(item) for item in patch if item[by] not in names]
        return new + [_merged(item, patches[item[by]]) if item[by] in patches else item for item in value]
    return deepcopy(patch)
