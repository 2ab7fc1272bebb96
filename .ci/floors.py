"""Print the lower bounds of pyproject.toml, but torch's, as constraints: name>=1.2 as name==1.2."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
floors: dict[str, set[str]] = {}
for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
    for requirement in requirements:
        if found := re.match(r"([\w-]+)>=([\d.]+)", requirement):
            floors.setdefault(found[1], set()).add(found[2])
for name, versions in sorted(floors.items()):
    if name != "torch":
        highest = max(versions, key=lambda version: [int(part) for part in version.split(".")])
        print(f"{name}=={highest}")
print("pyparsing<3.3")  # of matplotlib's age: newer ones warn of what it calls
