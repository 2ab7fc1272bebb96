"""Print the lower bounds of pyproject.toml, torch's aside, as constraints: name>=1.2 as name==1.2."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
lists = [project["dependencies"], *project["optional-dependencies"].values()]
floors: dict[str, set[str]] = {}
for requirement in sum(lists, []):
    if found := re.match(r"([\w-]+)>=([\d.]+)", requirement):
        floors.setdefault(found[1], set()).add(found[2])
for name, versions in sorted(floors.items()):
    if name != "torch":
        highest = max(versions, key=lambda version: [int(part) for part in version.split(".")])
        print(f"{name}=={highest}")
