"""The applications that come with llmsched, each a package: a template, handlers, a dataset loader, a scorer, a script.

A wheel carries them in this folder; a checkout has them in `apps/` beside `llmsched/`. Either way an application is
imported as `llmsched.apps.<name>`, also by worker processes.
"""

from __future__ import annotations

from pathlib import Path

#: Where applications are looked for: files a package of that name has.
_TEMPLATES = ("application.yaml", "application.yml", "application.json")


def folders() -> list[Path]:
    """The folder of each installed application, in alphabetical order."""
    found = (folder for place in __path__ for folder in Path(place).iterdir() if folder.is_dir())
    return sorted((f for f in found if any((f / name).is_file() for name in _TEMPLATES)), key=lambda f: f.name)


def handler_modules() -> list[str]:
    """Modules with the handlers of installed applications."""
    return [f"{__name__}.{folder.name}.handlers" for folder in folders() if (folder / "handlers.py").is_file()]


if not folders():
    _beside = Path(__file__).resolve().parents[2] / "apps"
    if _beside.is_dir():
        __path__.append(str(_beside))
